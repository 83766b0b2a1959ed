"""The table of all keys."""

from __future__ import annotations

from pipeline.config import Config
from pipeline.config.file import describe_keys


def test_help_names_every_key_with_range_default_and_meaning() -> None:
    text = describe_keys()
    for section, entry in Config.model_fields.items():
        assert entry.annotation is not None
        for key, found in entry.annotation.model_fields.items():
            assert f"  {section}.{key} = " in text
            assert str(found.description).split()[0] in text
    assert "  train.lr_per_256 = 1.0\n      a number > 0. peak learning rate" in text
    assert max(map(len, text.splitlines())) <= 100
