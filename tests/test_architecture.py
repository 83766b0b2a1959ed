"""What holds the rooms apart: who imports whom, public names, size of files, dangerous calls."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

import sdclr

ROOT = Path(__file__).resolve().parent.parent
SDCLR, PIPELINE = sorted((ROOT / "sdclr").rglob("*.py")), sorted((ROOT / "pipeline").rglob("*.py"))
# Pillow comes with torchvision, which requires it.
ALLOWED_IN_SDCLR = {"torch", "torchvision", "numpy", "PIL", "sdclr", *sys.stdlib_module_names}
# A room is a module or a package at the first level of pipeline/. It imports rooms of lower floors
# and its own.
FLOORS = (
    {"errors", "redact"},
    {"storage", "config", "console"},
    {"dataset", "cluster"},
    {"record"},
    {"ingest", "feed", "model"},
    {"train", "evaluate", "export"},
    {"tune", "mine", "report"},
    {"cli"},
    {"run"},
)
MAX_ROOMS = 24


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).with_suffix("").as_posix()


def imported(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def room(path: Path) -> str:
    return path.relative_to(ROOT / "pipeline").with_suffix("").parts[0]


def pipeline_imports(path: Path) -> set[str]:
    found = {n.split(".")[1] for n in imported(path) if n.startswith("pipeline.")}
    return found - {room(path)}


@pytest.mark.parametrize("path", SDCLR, ids=name_of)
def test_sdclr_knows_torch_torchvision_and_numpy_only(path: Path) -> None:
    assert {name.split(".")[0] for name in imported(path)} <= ALLOWED_IN_SDCLR


def test_sdclr_runs_without_ray_or_any_of_the_pipelines_packages() -> None:
    code = (
        "import sys, sdclr, sdclr.probe, sdclr.longtail, sdclr.health\n"
        "bad = {'ray', 'pydantic', 'pyarrow', 's3fs', 'yaml', 'optuna', 'pipeline'}\n"
        "sys.exit(', '.join(bad & set(sys.modules)) or 0)"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("path", PIPELINE, ids=name_of)
def test_imports_point_downwards(path: Path) -> None:
    if room(path) == "__init__":
        return
    (own,) = (number for number, floor in enumerate(FLOORS) if room(path) in floor)
    below = set().union(*FLOORS[:own])
    assert pipeline_imports(path) <= below, room(path)


def test_the_rooms_are_few() -> None:
    rooms = {room(path) for path in PIPELINE} - {"__init__"}
    assert rooms == set().union(*FLOORS) and len(rooms) <= MAX_ROOMS


def module_of(path: Path) -> str:
    return (
        path.relative_to(ROOT)
        .with_suffix("")
        .as_posix()
        .replace("/", ".")
        .removesuffix(".__init__")
    )


def circles(arrows: dict[str, set[str]]) -> list[tuple[str, ...]]:
    """Modules that import each other, directly or by way of others."""
    reach = {name: set(targets) for name, targets in arrows.items()}
    for middle in reach:
        for targets in reach.values():
            if middle in targets:
                targets |= reach[middle]
    return sorted(
        {tuple(sorted(m for m in reach[n] if n in reach[m])) for n in reach if n in reach[n]}
    )


def test_no_two_files_import_each_other() -> None:
    modules = {module_of(path): path for path in [*SDCLR, *PIPELINE]}
    arrows = {name: imported(path) & set(modules) - {name} for name, path in modules.items()}
    # A package's __init__ is imported with any of its modules; that alone makes no circle.
    for name, path in modules.items():
        if path.name != "__init__.py":
            arrows[name] -= {n for n in arrows[name] if name.startswith(n + ".")} - imported_names(
                path
            )
    assert circles(arrows) == []


def imported_names(path: Path) -> set[str]:
    """Packages of which a name that is no module is imported."""
    return {
        node.module
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ImportFrom)
        and node.module
        and any(not is_module(f"{node.module}.{alias.name}") for alias in node.names)
    }


def is_module(name: str) -> bool:
    place = ROOT / name.replace(".", "/")
    return place.with_suffix(".py").exists() or place.is_dir()


def test_circles_are_found() -> None:
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}}) == [("a", "b", "c")]
    assert circles({"a": {"b"}, "b": {"c"}, "c": set()}) == []


def test_what_ray_data_tasks_import_does_not_import_torch() -> None:
    code = (
        "import sys, pipeline.dataset.decoding, pipeline.ingest.task\n"
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


def test_public_names_are_sorted_and_exist() -> None:
    assert sdclr.__all__ == sorted(sdclr.__all__)
    assert all(hasattr(sdclr, name) for name in sdclr.__all__)


@pytest.mark.parametrize("path", [*SDCLR, *PIPELINE], ids=name_of)
def test_a_file_fits_in_one_head(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= 330


def test_the_entry_stays_an_entry() -> None:
    assert len((ROOT / "pipeline" / "run.py").read_text().splitlines()) <= 80


FORBIDDEN = {
    "eval", "exec", "pickle.load", "pickle.loads", "cloudpickle.loads", "yaml.load", "os.system",
    "yaml.unsafe_load", "yaml.full_load", "marshal.loads",
}  # fmt: skip


def dangerous_calls(source: str) -> list[str]:
    found = []
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call):
            continue
        name = ast.unparse(node.func)
        keywords = {k.arg: ast.unparse(k.value) for k in node.keywords}
        if (
            name in FORBIDDEN
            or keywords.get("shell") == "True"
            or keywords.get("verify") == "False"
        ):
            found.append(ast.unparse(node))
        if name.endswith("torch.load") and keywords.get("weights_only") != "True":
            found.append(ast.unparse(node))
    return found


@pytest.mark.parametrize("path", [*SDCLR, *PIPELINE], ids=name_of)
@pytest.mark.promise("S7")
def test_no_call_that_runs_what_a_file_says(path: Path) -> None:
    assert dangerous_calls(path.read_text()) == []


@pytest.mark.promise("S7", control=True)
def test_the_search_for_dangerous_calls_finds_them() -> None:
    source = "eval(x)\nsubprocess.run(y, shell=True)\ntorch.load(f)\npickle.load(f)\nyaml.load(f)"
    assert len(dangerous_calls(source)) == 5
    assert dangerous_calls("torch.load(f, weights_only=True)") == []


PIN = re.compile(r"[A-Za-z0-9_.\-]+(\[[a-z,]+\])?==[0-9][^\s]*\s+# .+")


def unfit_requirements(text: str) -> list[str]:
    """Lines that are no exact pin with a reason, or a Ray older than 2.56."""
    pins = [line for line in text.splitlines() if line and not line.startswith("#")]
    old = [
        pin
        for pin in pins
        if pin.startswith("ray") and tuple(map(int, re.findall(r"(\d+)\.(\d+)", pin)[0])) < (2, 56)
    ]
    return [pin for pin in pins if not PIN.fullmatch(pin)] + old


@pytest.mark.promise("S9")
def test_requirements_are_pinned_exactly_and_say_who_uses_them() -> None:
    text = (ROOT / "requirements.txt").read_text()
    assert re.search(r"^ray\[", text, re.MULTILINE) and unfit_requirements(text) == []


@pytest.mark.promise("S9", control=True)
def test_loose_old_and_unexplained_requirements_are_found() -> None:
    lines = "ray[data]==2.55.1  # all\nnumpy>=2.0  # arrays\ntorch==2.14.1\nfine==1.0  # why"
    assert len(unfit_requirements(lines)) == 3
