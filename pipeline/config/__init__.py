"""Every configuration key, once: type, unit, range, default and meaning.

`Config()` is the demo: handwritten digits, made long-tailed, on a CPU within minutes. Values are
never coerced, except a whole number where a number is expected, and never filled in later: a key
that is null stays null, and the stage that uses it derives the number. Files and command lines are
read by `pipeline.config.file`.
"""

from __future__ import annotations

from pipeline.config.data import Data, Feed, Ingest
from pipeline.config.health import Health
from pipeline.config.method import BCL, SDCLR, TS, Augment, Model, SimCLR
from pipeline.config.mine import Mine
from pipeline.config.placement import Placement
from pipeline.config.stages import Evaluate, Export, Run, Train
from pipeline.config.tune import Cost, Tune
from pipeline.config.types import Section


class Config(Section):
    """One run, whole."""

    run: Run = Run()
    data: Data = Data()
    ingest: Ingest = Ingest()
    model: Model = Model()
    sdclr: SDCLR = SDCLR()
    simclr: SimCLR = SimCLR()
    ts: TS = TS()
    bcl: BCL = BCL()
    train: Train = Train()
    augment: Augment = Augment()
    feed: Feed = Feed()
    health: Health = Health()
    evaluate: Evaluate = Evaluate()
    export: Export = Export()
    mine: Mine = Mine()
    placement: Placement = Placement()
    tune: Tune = Tune()
    cost: Cost = Cost()
