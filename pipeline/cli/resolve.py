"""Choice of a command's run: a new one, the newest of a configuration, or that of --resume.

How folders are named: `pipeline.record.folder`.
"""

from __future__ import annotations

import hashlib
import itertools
import shlex

from pipeline import storage
from pipeline.cli.command_line import Command
from pipeline.cluster.auto import settled_like
from pipeline.config import Config
from pipeline.config.file import changed_keys, config_hash, load_config, parse_config
from pipeline.config.public_weights import absolute
from pipeline.console import program
from pipeline.errors import ConfigError
from pipeline.record.folder import (
    RunFolder,
    data_of,
    existing_run,
    numbered,
    unfinished_methods,
)
from pipeline.record.lineage import weights_place

# The key of the order before streams; a new epoch of such a run would repeat or omit images.
_OLD_ORDER = "\n  window_shards: "


def resolve(command: Command) -> RunFolder:
    """Open the run of a command; a new one's backbone is built once, with weights it names.

    Raises:
        ConfigError: the configuration is wrong, the run to resume does not exist or has another
            configuration, or there is no run to evaluate.
        CheckpointError: those weights are not there, or do not fit.
    """
    folder = _found(command)
    if folder.is_new:
        _check_weights(folder.config, command)
    return folder


def _check_weights(config: Config, command: Command) -> None:
    if command.checkpoint is not None:
        from pipeline.model.source import given_source  # and with it torch

        given_source(config, command.checkpoint)
    elif command.stage in ("all", "train", "tune"):
        from pipeline.model import build

        start = config.train.init_from
        for method in config.train.methods if start else config.train.methods[:1]:
            build.new_network(config, method, init_from=build.init_uri(config))
        if command.stage == "all" and config.evaluate.public:
            from pipeline.model.source import public_sources

            public_sources(config)


def _found(command: Command) -> RunFolder:
    if command.stage == "embed" and command.checkpoint is not None:
        return _for_vectors(command, command.checkpoint)
    if command.resume is not None:
        folder = _existing(command)
        return _for_evaluation(folder.config) if _has_own_folder(command) else folder
    if command.extend is not None:
        return _extended(command, command.extend)
    config = load_config(command.config_file, command.overrides)
    if _has_own_folder(command):
        return _for_evaluation(config)
    root = storage.absolute(config.run.root)
    if command.stage == "tune":
        return _sweep(root, config)
    base = f"{config.run.name}-{config_hash(config)[:8]}"
    names = set(storage.list_names(root))
    number = 1
    while numbered(base, number) in names:
        number += 1
    if command.stage in ("evaluate", "export", "embed", "curate", "mine", "report"):
        if number == 1:
            raise ConfigError(
                "E-CONFIG-007",
                f"there is no run of this configuration to {command.stage}",
                where=storage.join(root, base),
                todo="run the stage train first, or name a run with --resume",
            )
        name = numbered(base, number - 1)
        uri = storage.join(root, name)
        config = settled_like(config, parse_config(_recorded_text(uri), origin=_file(uri)))
        return RunFolder(uri, name, config, is_new=False, **data_of(uri))
    name = numbered(base, number)
    return RunFolder(storage.join(root, name), name, config, is_new=True)


def _extended(command: Command, earlier: str) -> RunFolder:
    """Return a new run on the same data that starts from the weights of an earlier one."""
    if command.config_file is not None:
        raise ConfigError(
            "E-CONFIG-224",
            "an extended run has the configuration of the earlier one",
            where="train --extend --config",
            todo="leave out --config; section.key=value changes single keys",
        )
    uri = existing_run(earlier, load_config(None).run.root)
    text = _recorded_text(uri)
    open_methods = unfinished_methods(uri, parse_config(text, origin=_file(uri)).train.methods)
    if open_methods:
        raise ConfigError(
            "E-CONFIG-910",
            f"the run is not finished: {' and '.join(open_methods)} has no last weights",
            where=uri,
            todo=f"finish it first: {program()} --resume {shlex.quote(uri)}",
        )
    config = parse_config(text, origin=_file(uri), overrides=command.overrides)
    train = config.train.model_copy(update={"init_from": weights_place(uri)})
    config = config.model_copy(update={"train": train})
    root = storage.absolute(config.run.root)
    name = _free_name(root, f"{config.run.name}-{config_hash(config)[:8]}")
    return RunFolder(storage.join(root, name), name, config, is_new=True, **data_of(uri))


def _free_name(root: str, base: str) -> str:
    names = set(storage.list_names(root))
    return next(name for n in itertools.count(1) if (name := numbered(base, n)) not in names)


def _sweep(root: str, config: Config) -> RunFolder:
    """Open the one sweep of a configuration: new, or to be resumed."""
    name = f"{config.run.name}-sweep-{config_hash(config, sweep=True)[:8]}"
    uri = storage.join(root, name)
    is_new = not storage.exists(storage.join(uri, "run.json"))
    if not is_new:
        config = settled_like(config, parse_config(_recorded_text(uri), origin=_file(uri)))
    return RunFolder(uri, name, config, is_new=is_new, **({} if is_new else data_of(uri)))


def _existing(command: Command) -> RunFolder:
    assert command.resume is not None
    base = load_config(command.config_file, command.overrides if command.config_file else ())
    uri = existing_run(command.resume, base.run.root)
    text = _recorded_text(uri)
    file = _file(uri)
    config = parse_config(text, origin=file)
    wanted = base
    if command.config_file is None:
        wanted = parse_config(text, origin=file, overrides=command.overrides)
    wanted = settled_like(wanted, config)
    is_sweep = command.stage == "tune"
    changes = changed_keys(config, wanted, sweep=is_sweep)
    if changes:
        raise ConfigError(
            "E-CONFIG-009",
            "a run resumes with its own configuration; changed keys:\n" + "\n".join(changes),
            where=uri,
            todo="leave them out; for more epochs of a finished run: "
            f"{program()} train --extend {shlex.quote(uri)} train.epochs=N",
        )
    name = uri.rstrip("/").rpartition("/")[2]
    # Keys that are not hashed may differ: the run's models are then used in another way.
    config = wanted.model_copy(update={"run": config.run})
    return RunFolder(uri, name, config, is_new=False, **data_of(uri))


def _file(run_uri: str) -> str:
    return storage.join(run_uri, "config.yaml")


def _recorded_text(run_uri: str) -> str:
    """Return the configuration that a run keeps."""
    try:
        text = storage.read_bytes(_file(run_uri)).decode()
    except UnicodeDecodeError as error:
        todo = "restore the file from a backup; without it the run cannot be resumed"
        raise ConfigError(
            "E-CONFIG-008", f"it is not UTF-8 text ({error})", where=_file(run_uri), todo=todo
        ) from None
    if _OLD_ORDER in text:
        raise ConfigError(
            "E-CONFIG-640",
            "the run began under an older order of streamed images, that of feed.window_shards",
            where=_file(run_uri),
            todo="start a new run; its first weights may be this one's with train.init_from",
        )
    return text


def _has_own_folder(command: Command) -> bool:
    """Return whether something else than the models of one run is evaluated."""
    return command.checkpoint is not None or bool(command.runs)


def _for_evaluation(config: Config) -> RunFolder:
    """Return a new folder, so that no run's own evaluation is overwritten."""
    root = storage.absolute(config.run.root)
    base = f"{config.run.name}-eval-{config_hash(config)[:8]}"
    name = _free_name(root, base)
    return RunFolder(storage.join(root, name), name, config, is_new=True)


def _for_vectors(command: Command, checkpoint: str) -> RunFolder:
    """Open the one folder of a configuration and given weights: new, or to be resumed."""
    if command.resume is not None:
        config = _existing(command).config
    else:
        config = load_config(command.config_file, command.overrides)
    parts = [
        config_hash(config),
        absolute(checkpoint),
    ]
    key = hashlib.sha256(storage.to_json(parts)).hexdigest()[:8]
    name = f"{config.run.name}-embed-{key}"
    uri = storage.join(storage.absolute(config.run.root), name)
    is_new = not storage.exists(storage.join(uri, "run.json"))
    return RunFolder(uri, name, config, is_new=is_new, **({} if is_new else data_of(uri)))
