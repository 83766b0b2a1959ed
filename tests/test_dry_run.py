"""`ingest --dry-run`: what it shows of a source, measured on a seeded sample; nothing written."""

from __future__ import annotations

import re
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from pipeline.cli import here
from pipeline.cli import preview as preview_module
from pipeline.cli.command_line import parse
from pipeline.cli.preview import preview
from pipeline.cli.stages import run_stages
from pipeline.cli.timing import Timing, evaluation_images, evaluation_reading_s, mining_reading_s
from pipeline.cluster import auto, connect
from pipeline.cluster.preflight import GpuReport
from pipeline.config.file import config_hash, dump_config, load_config
from pipeline.console import Console
from pipeline.dataset.description import described
from pipeline.errors import PipelineError
from pipeline.ingest.lost_images import surely_too_many
from pipeline.ingest.plan import dry_run
from pipeline.ingest.sample import SIDES_PX
from pipeline.model import checkpoint, memory
from pipeline.model.build import new_network
from pipeline.record.keeper import RunRecord
from sdclr import TrainState
from tests.conftest import REPO
from tests.refusals import raises
from tests.sources import image_bytes, ingested, settings, write_files

SIZES = [(8, 9), (40, 33), (70, 64), (3000, 2048)]


def photos(root: Path) -> Path:
    files = {f"c{n % 2}/{n}.png": image_bytes(n, size, "JPEG") for n, size in enumerate(SIZES)}
    return write_files(root, {**files, "c0/bad.jpg": b"text", "c1/none.jpg": b""})


def test_the_sample_is_counted_and_measured(tmp_path: Path) -> None:
    allowed = {"max_reject_frac": 0.5}
    plan = dry_run(settings("folder", photos(tmp_path / "in"), tmp_path / "out", ingest=allowed))
    sample = plan.sample
    assert sample is not None and sample.num_images == plan.num_images == 6
    expected = {0: 1, SIDES_PX.index(32) + 1: 1, SIDES_PX.index(64) + 1: 1, len(SIDES_PX): 1}
    assert dict(enumerate(sample.side_counts)) == {n: expected.get(n, 0) for n in range(8)}
    assert [(r.id, r.reason) for r in sample.rejects] == [
        ("c0/bad.jpg", "not_an_image"),
        ("c1/none.jpg", "empty"),
    ]
    sizes = [len(image_bytes(n, size, "JPEG")) for n, size in enumerate(SIZES)]
    assert sample.mean_stored_bytes == sum(sizes) / 4 and sample.s_per_image > 0
    reduced = {"resize_short_px": 16, **allowed}
    small = dry_run(settings("folder", tmp_path / "in", tmp_path / "out", ingest=reduced))
    assert small.sample is not None and small.sample.mean_stored_bytes < max(sizes) / 10
    assert small.sets["pretrain"].num_bytes < plan.sets["pretrain"].num_bytes / 10
    assert not (tmp_path / "out").exists()


def test_times_count_each_image_that_is_read_and_each_forward_pass(tmp_path: Path) -> None:
    files = {f"c{n % 2}/{n}.png": image_bytes(n, (12, 12)) for n in range(23)}
    place = write_files(tmp_path / "in", files)
    plan = dry_run(settings("folder", place, tmp_path / "out", num_test_per_class=3))
    assert plan.sample is not None and plan.sets["pretrain"].rows == plan.sets["probe"].rows == 17
    apart = replace(plan.sets["probe"], num_shards=1)  # images of its own, as many
    unlike = replace(plan, sets={**plan.sets, "probe": apart})
    image_s = plan.sample.s_per_image / connect.usable_cpus()
    with_twin, without = (load_config(None, [f"train.methods=[{m}]"]) for m in ("sdclr", "simclr"))
    for config, planned, passes, read in (
        (with_twin, plan, (17 + 6) * 2 + 17, 17 + 6),  # two networks, and the pruned branch
        (with_twin, unlike, (17 + 6) * 2 + 17 * 2, 17 * 2 + 6),
        (without, plan, (17 + 6) * 2, 17 + 6),
        (without, unlike, (17 + 6) * 2, 17 + 6),
    ):
        assert evaluation_images(config, planned) == passes
        assert evaluation_reading_s(config, planned) == pytest.approx(read * image_s)
    assert mining_reading_s(with_twin, plan) == pytest.approx(17 * image_s)
    both = load_config(None, ["mine.score=both"])
    assert mining_reading_s(both, plan) == pytest.approx(2 * 17 * image_s)
    bare = replace(plan, manifest=replace(plan.manifest, class_names=None))
    assert evaluation_images(with_twin, bare) == 17 * 2 and evaluation_images(without, bare) == 0
    assert evaluation_reading_s(with_twin, bare) == pytest.approx(17 * image_s)
    assert evaluation_reading_s(without, bare) == 0
    assert evaluation_reading_s(with_twin, replace(plan, sample=None)) == 0


def test_what_a_person_sees(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["data.source=folder", f"data.path={photos(tmp_path / 'in')}", "--dry-run"]
    roots = [f"data.root={tmp_path / 'out'}", f"run.root={tmp_path / 'runs'}"]
    keys = ["data.imbalance_ratio=null", "ingest.max_reject_frac=0.5"]
    preview(parse(["ingest", *keys, *words, *roots]), Console())
    text = capsys.readouterr().out
    assert "images per class: c0 3, c1 3" in text and "will be made" in text
    assert "of 6 images drawn by seed, shorter side in px: below 32 1, 32-63 1, 64-127 1" in text
    assert "would be rejected: c0/bad.jpg (not_an_image" in text and "of one core" in text
    assert "train" not in text.split("images per class")[1] and not (tmp_path / "out").exists()


def test_counts_and_names_read_well(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    frames = [Image.new("RGB", (16, 16), colour) for colour in ("red", "blue")]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    files = {"cat /a.gif": (tmp_path / "a.gif").read_bytes(), "dog/b.png": image_bytes(0)}
    write_files(tmp_path / "in", {**files, "._c.png": b"", "n.txt": b"", "m.txt": b""})
    words = [f"data.{key}" for key in ("source=folder", f"path={tmp_path / 'in'}")]
    words += [f"run.root={tmp_path / 'runs'}", f"data.root={tmp_path / 'out'}", "--dry-run"]
    preview(parse(["ingest", *words]), Console())
    text = capsys.readouterr().out
    assert "left out: 2 .txt, 1 sidecar\n" in text
    assert "of these 2, 1 image has several frames or pages: the first is taken" in text
    assert "images per class: 'cat ' 1, dog 1" in text
    _, manifest, notes = ingested("folder", tmp_path / "in", tmp_path / "out")
    assert any("1 image has several frames" in note for note in notes)
    assert "1 sidecar" in described(manifest)


def test_what_ingest_would_refuse_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PipelineError) as caught:
        dry_run(settings("folder", photos(tmp_path / "in"), tmp_path / "out"))
    assert caught.value.id == "E-DATA-079" and "c0/bad.jpg" in caught.value.what


def test_a_sample_within_the_limit_is_no_proof() -> None:
    assert surely_too_many(2, 6, 6, 0.1)  # the sample is all there is
    assert surely_too_many(5, 256, 10**6, 0.001)
    assert not surely_too_many(1, 256, 10**6, 0.001)  # chance: one in four such samples has it


def test_what_a_sweep_would_cost(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = str(REPO / "tune_configs" / "sweep_demo.yaml")
    words = ["train.device=cpu", "cost.price_per_gpu_hour_usd=2", f"run.root={tmp_path / 'runs'}"]
    words += [f"data.root={tmp_path / 'data'}", "--dry-run"]
    preview(parse(["tune", "--config", config, *words]), Console())
    text = capsys.readouterr().out
    assert "sdclr: sdclr.prune_ratio 0.3 to 0.98\n" in text
    assert "simclr: simclr.temperature 0.05 to 1, by logarithm" in text
    assert "20 trials of 27 epochs, then up to 9 trainings with fresh seeds" in text
    assert "at most" in text and "with early stopping" in text and "no price" in text
    assert "scored on 300 val images: one is 0.3 points" in text
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("words", "id"),
    [
        (["feed.canvas_px=16"], "E-CONFIG-029"),
        ([], "E-CONFIG-018"),
        (
            ["augment.crop_px=16", "feed.canvas_px=16", "train.global_batch=16"],
            "E-DATA-040",
        ),
        (
            [
                "augment.crop_px=16",
                "feed.canvas_px=512",
                "feed.cache=none",
                "feed.max_memory_bytes=1048576",
            ],
            "E-CONFIG-019",
        ),
        (
            ["augment.crop_px=16", "feed.canvas_px=16", "evaluate.split=val"],
            "E-CONFIG-013",
        ),
        (
            ["augment.crop_px=16", "feed.canvas_px=16", "evaluate.shots_per_class=6"],
            "E-DATA-036",
        ),
    ],
)
def test_what_training_would_refuse_is_refused(tmp_path: Path, words: list[str], id: str) -> None:
    with raises(id):
        preview(parse(training(tmp_path, *words)), Console())


@pytest.mark.parametrize(
    ("words", "id"),
    [
        (["train.device=cuda"], "E-CLUSTER-001"),
        (["train.device=cuda", "train.workers=2"], "E-CLUSTER-001"),
        (["train.device=cpu", "train.workers=4"], "E-CLUSTER-002"),
        (["placement.train_nodes=train"], "E-CLUSTER-003"),
        (["placement.data_nodes=ray.io/market-type=spot"], "E-CLUSTER-003"),
    ],
)
def test_what_this_machine_lacks_is_refused_unless_a_cluster_is_named(
    words: list[str], id: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(auto, "gpus_here", lambda: 0)
    monkeypatch.setattr(connect, "usable_cpus", lambda: 2)
    fixed = ["--dry-run", "train.methods=[sdclr]", f"run.root={tmp_path}", f"data.root={tmp_path}"]
    with raises(id):
        preview(parse([*fixed, *words]), Console())
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    preview(parse([*fixed, *words]), Console())
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1")
    with raises("E-CLUSTER-381"):
        preview(parse([*fixed, *words]), Console())


def test_a_gpu_that_training_could_not_use_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(auto, "gpus_here", lambda: 1)
    words = ["--dry-run", "train.workers=1", f"run.root={tmp_path}", f"data.root={tmp_path}"]
    broken = GpuReport("here", driver="570", problem="torch sees no GPU")
    monkeypatch.setattr(here, "look", lambda: broken)
    with raises("E-CLUSTER-870"):
        preview(parse(words), Console())
    full = GpuReport("here", "small", free_bytes=2**20, total_bytes=2**30)
    monkeypatch.setattr(here, "look", lambda: full)
    with raises("E-CONFIG-872"):
        preview(parse(words), Console())


def test_what_evaluation_would_refuse_after_the_training_is_refused(tmp_path: Path) -> None:
    words = ["augment.crop_px=16", "feed.canvas_px=16"]
    public = "evaluate.public=[torchvision:squeezenet1_1:IMAGENET1K_V1]"  # too deep for 16 px
    with raises("E-CONFIG-762"):
        preview(parse(training(tmp_path, *words, public)), Console())


def test_without_labels_the_plan_says_what_evaluation_does(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["augment.crop_px=16", "feed.canvas_px=16", "data.labelled=false"]
    one = training(tmp_path, *words)
    one.remove("data.num_test_per_class=1")
    preview(parse(one), Console())
    assert re.search(r"no scores, without labels; images .*: \d", capsys.readouterr().out)
    other = [word.replace("[sdclr]", "[simclr]") for word in one]
    preview(parse(other), Console())
    assert "no scores, without labels\n" in capsys.readouterr().out  # no pruned branch


def test_a_training_that_would_start_is_shown_with_its_feed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    preview(parse(training(tmp_path, "augment.crop_px=16", "feed.canvas_px=16")), Console())
    text = capsys.readouterr().out
    assert "the decoded set, 0.0 MiB, is kept in memory" in text
    assert "2 epochs, 4 steps of 4 images on 1 worker" in text
    assert "[train] 2 of 10 images wait for another epoch: train.drop_last=false takes" in text


def training(root: Path, *words: str) -> list[str]:
    """A dry run of a training on 8 photos."""
    fixed = [
        "data.source=folder", f"data.path={root / 'in'}", "data.imbalance_ratio=null",
        "data.num_test_per_class=1", f"data.root={root / 'out'}", f"run.root={root / 'runs'}",
        "train.epochs=2", "train.methods=[sdclr]",
    ]  # fmt: skip
    files = {f"c{n % 2}/{n}.jpg": image_bytes(n, (40, 33), "JPEG") for n in range(12)}
    write_files(root / "in", files)
    batch = [] if any("global_batch" in word for word in words) else ["train.global_batch=4"]
    return ["train", "--dry-run", *fixed, *batch, *words]


DEMO = ["train.epochs=7", "train.checkpoint_every_epochs=1", "--dry-run"]


def seen(capsys: pytest.CaptureFixture[str], tmp_path: Path, *words: str) -> str:
    roots = [f"data.root={tmp_path / 'out'}", f"run.root={tmp_path / 'runs'}"]
    preview(parse([*words, *roots]), Console())
    assert not list(tmp_path.iterdir())
    return capsys.readouterr().out


@pytest.mark.parametrize(
    ("machine_bytes", "on_gpu", "names"),
    [(3 * 10**9, False, "train.micro_batch="), (5 * 10**9, False, ""), (None, False, ""),
     (3 * 10**9, True, "")],
)  # fmt: skip
def test_more_memory_than_the_machine_has_is_warned_of(
    machine_bytes: int | None, on_gpu: bool, names: str
) -> None:
    config = load_config(None, ["train.workers=2", "train.global_batch=64"])
    timing = Timing("here", 1.0, 1.0, worker_bytes=2 * 10**9, num_workers=2, on_gpu=on_gpu)
    found = timing.memory_warnings(config, 16, machine_bytes)
    assert len(found) == (1 if names else 0)
    assert names in "".join(found) and ("4 GB" in "".join(found)) == bool(names)


def test_device_time_memory_and_disk_are_shown(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(auto, "gpus_here", lambda: 0)
    text = seen(capsys, tmp_path, *DEMO, "train.methods=[sdclr]")
    for words in ("no GPU here", "ms a step", "of memory for each worker", "7 checkpoints of",
                  "2 kept", "[mine]", "cached-linear: ", "peak lr 0.5"):  # fmt: skip
        assert words in text, words
    number, unit = re.findall(r"([\d.]+) ([MG])B of memory for each", text)[0]
    worker_bytes = float(number) * {"M": 1e6, "G": 1e9}[unit]
    assert worker_bytes > memory.process_bytes() / 4 > 2e7  # its libraries are counted


def test_all_classes_are_shown_or_counted(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert "more classes" not in seen(capsys, tmp_path, "ingest", "--dry-run")
    monkeypatch.setattr(preview_module, "_NUM_CLASSES", 4)
    assert "4 141, 6 91, ... 6 more classes ..., 8 4, 1 2" in seen(
        capsys, tmp_path, "ingest", "--dry-run"
    )


def test_what_a_run_would_be_warned_of_is_shown(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(auto, "native_precision", lambda on_gpu: "float32")
    text = seen(capsys, tmp_path, *DEMO, "train.precision=bfloat16", "train.global_batch=256")
    assert "[warning] 135 of 391 images wait for another epoch: train.drop_last=false" in text
    assert "[warning] train.precision=bfloat16 is emulated" in text


def test_a_layer_without_weights_is_refused_as_by_the_run(tmp_path: Path) -> None:
    with raises("E-TRAIN-000"):
        preview(parse([*DEMO, "sdclr.prune_ratio=0.9999", f"data.root={tmp_path}"]), Console())


def test_what_pruning_takes_from_the_backbone_is_shown(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "prune_ratio 0.9 switches off 89.2 %" in seen(capsys, tmp_path, *DEMO)


def test_a_backbone_that_there_is_not_is_refused_with_the_nearest(tmp_path: Path) -> None:
    with raises("E-CONFIG-761", "resnet18"):
        preview(parse([*DEMO, "model.backbone=resnet17", f"data.root={tmp_path}"]), Console())


def test_a_root_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with raises("E-STORAGE-376"):
        preview(parse(["--dry-run", f"run.root={tmp_path / 'file' / 'runs'}"]), Console())


def run_on_images(tmp_path: Path) -> str:
    """Return a run on 23 images, 6 of them a test set, without a checkpoint."""
    files = {f"c{n % 2}/{n}.png": image_bytes(n, (12, 12)) for n in range(23)}
    place = write_files(tmp_path / "in", files)
    uri, manifest, _ = ingested("folder", place, tmp_path / "data", num_test_per_class=3)
    run = str(tmp_path / "runs" / "some")
    record = RunRecord.create(run, name="some", config_hash="0" * 64, seed=0, argv=[])
    record.set_data(uri=uri, manifest_hash=manifest.hash, name=manifest.name)
    words = ["data.source=folder", f"data.path={place}", "augment.crop_px=8"]
    (tmp_path / "runs" / "some" / "config.yaml").write_text(dump_config(load_config(None, words)))
    record.finish()
    return run


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["embed"], [r"17 images of the set pretrain: \d.*, 4\.35 kB of vectors"]),
        (["embed", "--set", "test", "--dtype", "float16"], [r"6 images of .*: \d.*, 768 B of"]),
        (["curate"], [r"17 images of the set pretrain, 6 of test: vectors \d.*, 5\.89 kB",
                      r"4 clusters .* about \d.*, 11\.8 kB of memory; at most 8 images"]),
        (["curate", "--set", "test", "--keep", "2"], [r"6 images of the set test: vectors",
                                                      r"2 clusters .* at most 2 images"]),
    ],
)  # fmt: skip
def test_what_vectors_would_take(
    words: list[str], expected: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = run_on_images(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    preview(parse([*words, "--resume", run, "--dry-run"]), Console())
    text = capsys.readouterr().out
    for pattern in expected:
        assert re.search(pattern, text), text
    assert sorted(tmp_path.rglob("*")) == before
    with raises("E-CONFIG-662"):
        preview(parse(["curate", "--keep", "18", "--resume", run, "--dry-run"]), Console())
    with raises("E-CONFIG-662"):
        run_stages(parse(["curate", "--keep", "18", "--resume", run]), Console())
    assert "[ray]" not in capsys.readouterr().out  # refused before it starts


def test_what_an_export_would_write(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = run_on_images(tmp_path)
    words = ["export", "--resume", run, "--dry-run"]
    with raises("E-CHECKPOINT-001"):
        preview(parse(words), Console())
    stored = load_config(f"{run}/config.yaml", [])
    for method in stored.train.methods:
        network = new_network(stored, method)
        tensors = {f"model.network.{n}": t for n, t in network.state_dict().items()}
        state = TrainState(tensors, {"step": 4, "num_steps": 4})
        checkpoint.save(
            checkpoint.checkpoints_uri(run, method), state, config_hash=config_hash(stored)
        )
    before = sorted(tmp_path.rglob("*"))
    capsys.readouterr()
    preview(parse(words), Console())
    text = capsys.readouterr().out
    for method in stored.train.methods:
        assert f"{method}, step 4: safetensors, torch-export to {run}/export/{method}" in text
    assert sorted(tmp_path.rglob("*")) == before
    monkeypatch.setitem(sys.modules, "onnx", None)
    with raises("E-CONFIG-016"):
        preview(parse([*words, "export.formats=[onnx]"]), Console())
