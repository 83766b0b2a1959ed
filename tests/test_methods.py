"""The list of methods: every one trains, resumes and is known to all that names methods."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from sdclr.methods import METHODS, method_class
from tests.recipes import some_plan, some_trainer

ROOT = Path(__file__).resolve().parent.parent
PLAN = some_plan()

TOY = '''
from sdclr.methods.method import Method

class Toy(Method):
    """SimCLR at twice the temperature."""

    def temperature(self, epoch):
        return 2 * self.recipe.temperature
'''
LINE = '    "toy": Entry("Toy", "toy:Toy", "simclr", "A toy (this test)"),\n'
USE = """
from pipeline.config.file import load_config
from pipeline.model import build
from pipeline.report.names import style, title
from pipeline.tune.space import parameters
from tests.recipes import some_images, some_plan, some_trainer

config = load_config(None, ["train.methods=[toy, sdclr]", "simclr.temperature=0.3"])
assert config.train.methods == ("toy", "sdclr")
assert title("toy") == "Toy" and style("toy") != style("sdclr")
assert [p.key for p in parameters(config, "toy")] == ["simclr.temperature"]
assert build.architecture(config, "toy")["head_depth"] == config.simclr.head_depth
reports = list(some_trainer(some_plan(), method="toy").run(some_images().feed(some_plan(), seed=0)))
assert reports[0].temperature == 0.4
first = next(some_trainer(some_plan(), method="simclr", temperature=0.4).run(
    some_images().feed(some_plan(), seed=0)))
assert reports[0].loss == first.loss
"""


def test_a_method_is_added_by_one_file_and_one_line(tmp_path: Path) -> None:
    for package in ("sdclr", "pipeline", "tests"):
        shutil.copytree(ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("*.pyc"))
    listed = tmp_path / "sdclr" / "methods" / "__init__.py"
    start = "METHODS = {\n"
    assert start in listed.read_text()
    command = [sys.executable, "-c", USE]
    without = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert without.returncode and "train.methods" in without.stderr
    listed.write_text(listed.read_text().replace(start, start + LINE))
    (tmp_path / "sdclr" / "methods" / "toy.py").write_text(TOY)
    found = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert found.returncode == 0, found.stderr


def test_the_list_is_read_without_torch() -> None:
    code = "import sys, sdclr.methods, pipeline.config; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


@pytest.mark.parametrize("name", METHODS)
def test_a_method_is_one_short_file(name: str) -> None:
    file = ROOT / "sdclr" / "methods" / f"{METHODS[name].home.partition(':')[0]}.py"
    assert len(file.read_text().splitlines()) <= 150
    assert method_class(name).__doc__ and METHODS[name].source and METHODS[name].title


def test_an_unknown_method_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"no method 'moco'.*simclr"):
        some_trainer(PLAN, method="moco")
