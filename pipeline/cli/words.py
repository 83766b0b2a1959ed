"""The words of the command line: stages, the sections that each reads, and its own words."""

from __future__ import annotations

from typing import Literal, get_args

STAGES = {
    "all": "ingest, train, evaluate and report, one after the other (the default)",
    "ingest": "source images to verified long-tail shards and a manifest",
    "train": "pre-train every method of train.methods on the ingested shards",
    "evaluate": "score the newest run of this configuration, that of --resume, or given weights; "
    "with several RUNs: average their scores",
    "export": "write the trained backbones for use without this project: weights, program, card",
    "embed": "write the vector of every image to Parquet files, by the run's or by given weights",
    "curate": "find near-duplicates, and select a balanced part; needs no labels",
    "mine": "rank every image of a data set by how rare it is; needs no labels",
    "report": "write report.html of that run; with several RUNs: compare them on one page",
    "log": "give a RUN's metrics to TensorBoard, MLflow or Weights & Biases; again adds no copy",
    "gc": "list what nothing needs: data sets, runs, sweeps, checkpoints; asked twice, remove it",
    "tune": "search settings by tune.*, on the val set or without labels; again = resume",
    "reproduce": "train and score the runs of a study over its seeds; ends in one table",
}
SECTIONS_OF = {
    "ingest": ("data", "ingest", "placement"),
    "train": (
        "model",
        "sdclr",
        "simclr",
        "ts",
        "bcl",
        "train",
        "augment",
        "feed",
        "health",
        "placement",
    ),
    "evaluate": ("evaluate", "augment", "feed", "placement"),
    "export": ("export",),
    "embed": ("feed", "placement"),
    "curate": ("feed", "placement"),
    "mine": ("mine", "feed", "placement"),
    "report": (),
    "log": (),
    "gc": (),
    "tune": ("tune", "cost"),
    "reproduce": (),
}  # fmt: skip
"""The sections of the configuration that a stage reads first of all."""
SetName = Literal["pretrain", "probe", "val", "test"]
# As in `run.trackers` and below as in its record: neither is imported for a command line.
TrackerName = Literal["tensorboard", "mlflow", "wandb"]
SETS = get_args(SetName)
TRACKERS = get_args(TrackerName)
DType = Literal["float32", "float16"]
DTYPES = get_args(DType)
FLAGS = ("--config", "--resume", "--dry-run", "--help", "--help-keys")
OWN_WORDS = {
    "--checkpoint": (("evaluate", "embed"), "URI", "these weights, or this step-* folder of a run, "
                     "instead of the run's models"),
    "--data": (("embed", "curate", "mine"), "URI", "another ingested data set: the folder that "
               "ingest printed"),
    "--set": (("embed", "curate", "mine"), "SET", f"which of its sets: {', '.join(SETS)} "
              "(pretrain)"),
    "--dtype": (("embed",), "DTYPE", f"of the stored numbers: {', '.join(DTYPES)} (float32)"),
    "--keep": (("curate",), "N", "images to select (half of those that are no near-duplicates)"),
    "--similarity": (("curate",), "S", "cosine of near-duplicates (0.99)"),
    "--labels": (("mine",), "CSV", "labels of suggested images, to be counted: columns path or id, "
                 "and label"),
    "--rare": (("mine",), "LABELS", "which of these labels are rare, with commas (the third with "
               "the fewest images)"),
    "--extend": (("train",), "RUN", "a new run that starts from the weights of this finished one"),
    "--to": (("log",), "TRACKER", f"which tracker: {', '.join(TRACKERS)}"),
    "--follow": (("log",), "", "go on until the run has ended"),
    "--root": (("gc",), "URI", "the folder or bucket that holds runs, data sets, or both"),
    "--remove": (("gc",), "TOKEN", "remove what was listed with this token"),
}  # fmt: skip
"""Words of some stages: the stages, what follows the word, what it does."""
