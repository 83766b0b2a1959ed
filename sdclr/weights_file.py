"""Tensors in a file of the safetensors format, with plain facts about them; no code is ever run.

8 bytes: length of the header, little endian. The header: JSON, name -> dtype, shape, place. Then
the bytes of all tensors. Format: https://github.com/huggingface/safetensors, read here with torch
and numpy alone, so that `import sdclr` needs nothing else.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

_DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "I64": torch.int64, "I32": torch.int32, "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}
_MAX_HEADER_BYTES = 2**24
_FACTS = "__metadata__"


class WeightsFileError(ValueError):
    """The file is not one of the safetensors format, or is torn."""


def save_weights(path: str | Path, tensors: dict[str, Tensor], facts: dict[str, Any]) -> None:
    """Write tensors and facts; the file appears whole or not at all.

    Args:
        path: the file, replaced if it exists.
        tensors: by name, on any device.
        facts: values that JSON can hold; stored as the one entry `sdclr`.

    Raises:
        WeightsFileError: a tensor is of a type that the format or this module does not know.
    """
    header: dict[str, Any] = {_FACTS: {"sdclr": json.dumps(facts, sort_keys=True)}}
    parts, start = [], 0
    for name, tensor in tensors.items():
        if tensor.dtype not in _NAMES:
            raise WeightsFileError(f"{name} is {tensor.dtype}, which cannot be stored")
        data = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
        header[name] = {
            "dtype": _NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [start, start + len(data)],
        }
        parts.append(data)
        start += len(data)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path = Path(path)
    torn = path.with_name(path.name + ".part")
    torn.write_bytes(len(text).to_bytes(8, "little") + text + b"".join(parts))
    torn.replace(path)


def read_weights(path: str | Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the tensors of a file and the facts that `save_weights`, or a run, wrote with them.

    Raises:
        FileNotFoundError: there is no such file.
        WeightsFileError: it is not of this format, or torn.
    """
    content = Path(path).read_bytes()
    num_header = int.from_bytes(content[:8], "little")
    if len(content) < 8 or num_header > min(_MAX_HEADER_BYTES, len(content) - 8):
        raise WeightsFileError(f"{path} is not a safetensors file")
    try:
        header = json.loads(content[8 : 8 + num_header])
        facts = json.loads(header.pop(_FACTS, {}).get("sdclr", "{}"))
        data = memoryview(content)[8 + num_header :]
        tensors = {name: _tensor(data, entry) for name, entry in header.items()}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise WeightsFileError(f"{path} is torn or not a safetensors file: {error}") from error
    return tensors, facts if isinstance(facts, dict) else {}


def _tensor(data: memoryview, entry: dict[str, Any]) -> Tensor:
    start, stop = (int(place) for place in entry["data_offsets"])
    dtype, shape = _DTYPES[entry["dtype"]], [int(side) for side in entry["shape"]]
    num_bytes = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
    if (
        not 0 <= start <= stop <= len(data)
        or stop - start != num_bytes
        or min(shape, default=0) < 0
    ):
        raise ValueError(f"a tensor of shape {shape} does not fit its place {start}..{stop}")
    if num_bytes == 0:
        return torch.empty(shape, dtype=dtype)
    flat = torch.frombuffer(bytearray(data[start:stop]), dtype=torch.uint8)
    return flat.view(dtype).reshape(shape)
