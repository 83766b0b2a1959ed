"""Places by form: what is a path, file:// or s3://; all else that looks like a URI is refused."""

from __future__ import annotations

import ast
import os
import re
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, get_args

import pytest
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from pipeline import storage
from pipeline.config import Config
from pipeline.config.file import load_config
from pipeline.config.public_weights import check_weights
from pipeline.errors import ConfigError, StorageError
from pipeline.storage import place
from tests.loopback_s3 import LoopbackS3

GOOD = {
    "data": ("local", "data"),
    "/a b/ü": ("local", "/a b/ü"),
    "./run:1": ("local", "./run:1"),
    "12:30/images": ("local", "12:30/images"),
    "my data: v2": ("local", "my data: v2"),
    "data[1-9]*?#%": ("local", "data[1-9]*?#%"),
    "file:///a%20b/c": ("local", "/a b/c"),
    "file://localhost/a": ("local", "/a"),
    "s3://b": ("b", ""),
    "s3://bucket.with-dots_1/": ("bucket.with-dots_1", ""),
    "s3://b/data[1-9]*?#%20 ü": ("b", "data[1-9]*?#%20 ü"),
}
BAD = [
    "s3:/bucket/x", "s3:x", "s3:bucket/data", "s3://", "s3:///", "s3:///key", "S3://bucket/x",
    " s3://bucket/x", "s3://bucket/x ", "s3//bucket/x", "s3;//bucket/x", "s3:\\\\bucket\\x",
    "s3:///bucket/x", "s3://bu cket/x", "s3://bücket/x", "s3://user@bucket/x", "s3://b:9000/x",
    "s3://.../x", "s3://b/../x", "s3://b/./x", "s3://b/" + "k" * 1025, "s3://arn:aws:s3:::x",
    "gs://bucket/x", "s3a://bucket/x", "http://host/x", "https://b.s3.amazonaws.com/x", "hdfs://x",
    "az://c/x", "file:/x", "file:x", "file://x", "file://", "File:///x", "FILE:/x", "C:\\x", "c:/x",
    "data:x", "localhost:9000/bucket", "./s3://bucket/x", "/x/s3://bucket", "file:///a%ff",
    "file:///a%00b", "a\0b", "a\nb", "file:///a%0ab", "s3://b/a\tb", " ", "", "x" * 256,
    "~no_such_user_here/x",
]  # fmt: skip
BAD_FOR_S3 = {"s3://bucket/x "}  # a blank at the end is a part of the key


@pytest.mark.parametrize("text", GOOD)
def test_places_of_known_form_are_read_as_typed(text: str) -> None:
    found = place.parse(place.check(text))
    assert ((found.kind, found.path) if found.kind == "local" else (found.bucket, found.key)) == (
        GOOD[text]
    )


@pytest.mark.parametrize("text", [t for t in BAD if t not in BAD_FOR_S3])
def test_what_only_looks_like_a_place_is_refused(text: str) -> None:
    with pytest.raises(place.FormError) as caught:
        place.check(text)
    assert str(caught.value)


def keys_of_places() -> dict[str, str]:
    """Dotted name of every key that takes a place -> how one is given, known by the type."""
    found: dict[str, str] = {}
    for section, field in Config.model_fields.items():
        for key, inner in field.annotation.model_fields.items():  # type: ignore[union-attr]
            name, kind = f"{section}.{key}", inner.annotation
            if isinstance(kind, type) and issubclass(kind, BaseModel):
                for part, deep in kind.model_fields.items():
                    if _takes_a_place(deep):
                        given = "[{}]" if _is_list(deep) else "{}"
                        found[f"{name}.{part}"] = f"{name}={{{{{part}: {given}}}}}"
            elif _takes_a_place(inner):
                found[name] = f"{name}=[{{}}]" if _is_list(inner) else f"{name}={{}}"
    return found


def _takes_a_place(field: FieldInfo) -> bool:
    return _names_a_place([field.annotation, *field.metadata])


def _names_a_place(parts: Sequence[Any]) -> bool:
    return any(
        getattr(part, "func", None) in (place.check, check_weights)
        or _names_a_place([*get_args(part), *getattr(part, "__metadata__", ())])
        for part in parts
    )


def _is_list(field: FieldInfo) -> bool:
    return "tuple" in str(field.annotation)


def test_every_key_that_names_a_place_has_its_type() -> None:
    found = keys_of_places()
    assert {"data.path", "data.root", "run.root", "train.init_from"} <= set(found)
    assert sum(name.startswith("data.sets.") for name in found) >= 5
    for section, field in Config.model_fields.items():
        for key in field.annotation.model_fields:  # type: ignore[union-attr]
            named = key in ("path", "root") or key.endswith(("_index", "_root", "_list"))
            assert not named or f"{section}.{key}" in found, key


@pytest.mark.parametrize("text", ["s3:/bucket/x", "s3://", "gs://bucket/x", "file:/x", "S3://b/x"])
@pytest.mark.parametrize("name", keys_of_places())
def test_every_key_refuses_them_before_anything_is_read(
    name: str, text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    words = [keys_of_places()[name].format(repr(text))]
    if name == "data.path":
        words.insert(0, "data.source=folder")
    with pytest.raises(ConfigError) as caught:
        load_config(None, words)
    assert ".".join(name.split(".")[:2]) in str(caught.value) and "expected" not in str(
        caught.value
    ).replace(f"expected {place.KNOWN}", "")
    assert list(tmp_path.iterdir()) == []


def test_links_in_a_circle_and_names_too_long_are_typed_errors(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to(tmp_path / "b")
    (tmp_path / "b").symlink_to(tmp_path / "a")
    for uri, cause in (
        (tmp_path / "a" / "x", "E-STORAGE-379"),
        (tmp_path / ("x" * 300), "E-STORAGE-378"),
    ):
        for use in (storage.read_bytes, storage.exists, storage.check_writable, storage.size_bytes):
            with pytest.raises(StorageError) as caught:
                use(str(uri))
            assert caught.value.id == cause
    assert storage.absolute(str(tmp_path / "a" / "x"))


def test_a_place_that_can_be_written_is_accepted_and_left_empty(root_of: str) -> None:
    storage.check_writable(storage.join(root_of, "not", "there", "yet"))
    assert storage.list_tree(root_of) == {} and not storage.exists(root_of)


@pytest.fixture(params=["local", "s3"])
def root_of(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "s3":
        request.getfixturevalue("s3")
        return "s3://bucket/some place"
    return str(tmp_path / "a place")


def test_places_that_cannot_be_written_are_refused_by_cause(
    tmp_path: Path, s3: LoopbackS3, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_bytes(b"")
    closed = tmp_path / "closed"
    closed.mkdir()
    refused = lambda path, mode: Path(path) != closed and os.path.exists(path)  # noqa: E731
    monkeypatch.setattr(os, "access", refused)  # root may write anywhere
    expected = {
        str(tmp_path / "file" / "x"): "E-STORAGE-376",
        str(closed / "x"): "E-STORAGE-371",
        "/proc/sys/x": "E-STORAGE-372" if os.statvfs("/proc/sys").f_flag & os.ST_RDONLY else None,
        "s3://nobucket/x": "E-STORAGE-392",
    }
    for uri, cause in expected.items():
        if cause is not None:
            with pytest.raises(StorageError) as caught:
                storage.check_writable(uri)
            assert caught.value.id == cause and caught.value.where == uri
    s3.faults.append(403)
    with pytest.raises(StorageError) as caught:
        storage.check_writable("s3://bucket/x")
    assert caught.value.id == "E-STORAGE-391"


@pytest.mark.parametrize("flags", ["full", "read-only"])
def test_a_full_or_read_only_disk_is_found_before_it_is_written(
    flags: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Status:
        f_flag = os.ST_RDONLY if flags == "read-only" else 0
        f_blocks, f_bavail = 100, 0

    monkeypatch.setattr(os, "statvfs", lambda _: Status)
    with pytest.raises(StorageError) as caught:
        storage.check_writable(str(tmp_path / "x"))
    assert caught.value.id == ("E-STORAGE-372" if flags == "read-only" else "E-STORAGE-373")


OPTION_OF_PLACE = re.compile(r"--(resume|config|checkpoint|data) $")


def unquoted_hints(tree: ast.AST) -> list[int]:
    """Lines of texts in which a path follows an option without quotes for the shell."""
    return [
        before.lineno
        for node in ast.walk(tree)
        if isinstance(node, ast.JoinedStr)
        for before, value in pairwise(node.values)
        if isinstance(before, ast.Constant)
        and OPTION_OF_PLACE.search(str(before.value))
        and isinstance(value, ast.FormattedValue)
        and "shlex" not in ast.unparse(value)
        and ast.unparse(value.value) != "quoted"  # a name for the result of shlex.quote
    ]


def test_every_hint_quotes_its_path_for_a_shell() -> None:
    root = Path(__file__).resolve().parents[1] / "pipeline"
    found = {f: unquoted_hints(ast.parse(f.read_text())) for f in sorted(root.rglob("*.py"))}
    assert {f.name: lines for f, lines in found.items() if lines} == {}
    assert unquoted_hints(ast.parse('f"run it: --resume {uri}"')) == [1]
