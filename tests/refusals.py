"""Configurations from YAML text and overrides, and what is said about wrong ones."""

from __future__ import annotations

import pytest

from pipeline.config import Config
from pipeline.config.file import parse_config
from pipeline.errors import ConfigError


def refusal(text: str | None = None, *overrides: str) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        parse_config(text, origin="my.yaml", overrides=overrides)
    return caught.value


def lines(text: str | None = None, *overrides: str) -> list[str]:
    return refusal(text, *overrides).what.splitlines()


def with_overrides(*overrides: str) -> Config:
    return parse_config(None, origin="", overrides=overrides)
