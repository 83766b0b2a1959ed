"""Command lines that people might type, at random: keys, places, options, environment variables."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pipeline.cli.words import STAGES
from pipeline.config import Config

PLACES = [
    "data", "s3://bucket/photos", "s3://bucket/data[12]", "s3://nobucket/x", "s3://b", "s3://",
    "s3:/x", "S3://bucket/x", "gs://bucket/x", "http://127.0.0.1/x", "file:///tmp", "file:x",
    "file:///a%ff", "C:\\photos", "~", "~nobody_here/x", "/", "/dev/null", "/dev/zero",
    "/proc/self/mem", "/proc", "/nowhere/at/all", "..", ".", "./a:b", "a b", "x" * 300, "日本",
    "a[1]*?", "a\nb", "-", "--", "{tmp}/images", "{tmp}/empty", "{tmp}/list.csv", "{tmp}/odd.csv",
    "{tmp}/list.txt", "{tmp}/torn.tar", "{tmp}/torn.parquet", "{tmp}/w.pt",
    "{tmp}/torn.safetensors", "{tmp}/loop/x", "{tmp}/pipe", "{tmp}/index.npy", "{tmp}/index.json",
    "{tmp}/images/a/0.png", "{tmp}/out",
]  # fmt: skip
VALUES = [
    "", " ", "null", "~", "true", "no", "0", "1", "2", "8", "16", "64", "-1", "1.5", "1e-3",
    "1e999", ".inf", ".nan", "nan", "9" * 30, "9" * 5000, "0x10", "1_000", "01", "auto", "[]",
    "[1, 2]", "[1, 2", "{}", "{a: 1}", "{pretrain: x}", "{pretrain: {}}", "{fewshot: [1]}",
    "[[[[[[1]]]]]]", "[" * 2000, "!!python/object:x", "&a [*a]", "*a", "'", '"', "%s", "$(x)",
    "a\tb", "\u202e", "\udcff", "\ufeff", "é", "=", "a=b", "|", ">", "- a", "? a", "#",
    "2024-01-01", "12:30:00", "digits", "cifar10", "folder", "list", "parquet", "webdataset",
    "sdclr", "[sdclr, simclr]", "resnet18", "resnet8", "cpu", "cuda", "imagenet", "test", "val",
]  # fmt: skip
ENVIRONMENT = {
    "AWS_ENDPOINT_URL": ["127.0.0.1:9", "localhost", "http://", "http://127.0.0.1:9", "http://[", "ftp://x",
                         "http://127.0.0.1:port", "http://a b", "https://127.0.0.1:9"],
    "AWS_ENDPOINT_URL_S3": ["x", "http://127.0.0.1:9"],
    "AWS_ACCESS_KEY_ID": ["a b", "é", "k"],
    "AWS_SECRET_ACCESS_KEY": ["s\u00a0", "a b", "s"],
    "AWS_SESSION_TOKEN": ["a b", "é"],
    "AWS_DEFAULT_REGION": ["eu central", "-", "mars-1", "é"],
    "AWS_REGION": ["x y", "é"],
    "AWS_MAX_ATTEMPTS": ["many", "0", "-1", "1.5"],
    "AWS_RETRY_MODE": ["never", "standard"],
    "AWS_PROFILE": ["nobody", " "],
    "AWS_CONFIG_FILE": ["{tmp}/odd.csv", "{tmp}", "/nowhere"],
    "AWS_CA_BUNDLE": ["/nowhere", "{tmp}/odd.csv"],
    "AWS_DEFAULTS_MODE": ["odd", "standard"],
    "AWS_METADATA_SERVICE_TIMEOUT": ["soon", "1"],
    "AWS_REQUEST_CHECKSUM_CALCULATION": ["never"],
    "AWS_CONTAINER_CREDENTIALS_FULL_URI": ["x", "http://127.0.0.1:9/x"],
    "AWS_ROLE_ARN": ["x"],
    "AWS_WEB_IDENTITY_TOKEN_FILE": ["/nowhere", "{tmp}/odd.csv"],
    "AWS_STS_REGIONAL_ENDPOINTS": ["odd"],
    "AWS_USE_FIPS_ENDPOINT": ["odd", "true"],
    "AWS_SDK_UA_APP_ID": ["a b", "x" * 100],
    "HTTP_PROXY": ["x y", "http://", "http://127.0.0.1:port", "http://127.0.0.1:9"],
    "HTTPS_PROXY": ["::", "127.0.0.1:9"],
    "RAY_ADDRESS": ["127.0.0.1", "x y", "http://127.0.0.1:8265", "ray://x:1", "127.0.0.1:1", ":",
                    "auto "],
    "RAY_TMPDIR": ["x", "/" + "x" * 80, "/proc/x"],
    "RAY_AUTH_MODE": ["odd"],
    "RAY_DATA_EXECUTION_NO_PROGRESS_TIMEOUT_S": ["soon"],
    "TMPDIR": ["/nowhere", "x"],
    "HOME": ["", "/nowhere", "x"],
    "COLUMNS": ["x", "-1", "0"],
    "PYTHONPATH": [":::"],
    "NO_COLOR": ["1"],
    "TERM": ["odd"],
    "LANG": ["odd"],
    "OMP_NUM_THREADS": ["many", "-1"],
    "CUDA_VISIBLE_DEVICES": ["x", "-1"],
}  # fmt: skip


@dataclass(frozen=True)
class Typed:
    """A command line with the environment that it is typed in."""

    words: list[str]
    environment: Mapping[str, str]


def command_line(rng: random.Random, tmp: Path) -> Typed:
    """Return a random command line of a dry run; most of them are wrong somewhere."""
    words: list[str] = []
    if rng.random() < 0.9:
        # A sweep measures steps, which takes seconds.
        stages = [stage for stage in STAGES if stage != "tune" or rng.random() < 0.1]
        words.append(rng.choice(stages) if rng.random() < 0.95 else rng.choice(VALUES))
    if rng.random() < 0.5:
        source = rng.choice(["folder", "list", "parquet", "webdataset", "cifar10", "cifar100"])
        words += [f"data.source={source}", f"data.path={_place(rng, tmp)}", "feed.canvas_px=16"]
    for _ in range(rng.choice([0, 0, 1, 1, 2, 4])):
        words.append(_override(rng, tmp))
    for flag in ("--resume", "--config"):
        if rng.random() < 0.12:
            words += [flag, _place(rng, tmp)] if rng.random() < 0.95 else [flag]
    if rng.random() < 0.03:
        words.append(rng.choice([*VALUES, "--help", "--help-keys", "--no-such-flag"]))
    if rng.random() < 0.1:
        rng.shuffle(words)
    names = rng.sample(sorted(ENVIRONMENT), k=rng.choice([0, 0, 0, 1, 2]))
    values = {name: rng.choice(ENVIRONMENT[name]).replace("{tmp}", str(tmp)) for name in names}
    return Typed([*words, "--dry-run"], values)


def _override(rng: random.Random, tmp: Path) -> str:
    section = rng.choice(list(Config.model_fields))
    kind = Config.model_fields[section].annotation
    fields = kind.model_fields  # type: ignore[union-attr]
    key = rng.choice(list(fields))
    if rng.random() < 0.05:
        return rng.choice(
            [f"{section}.{key[:-1]}=1", f"{section}=1", f".{key}=1", f"{section}..{key}=1"]
        )
    if rng.random() < 0.3:
        return f"{section}.{key}={_place(rng, tmp)}"
    return f"{section}.{key}={rng.choice(VALUES)}"


def _place(rng: random.Random, tmp: Path) -> str:
    return rng.choice(PLACES).replace("{tmp}", str(tmp))
