"""Bytes of an entry: the safetensors format, written and read here without a copy too many.

The library's own loader copies every tensor, which costs more than reading the file does (see
`python -m cache_db.benchmark`). The format has no checksum by decision, so the digest of the
whole file stands in the row and is checked before one byte of the header is believed.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import numpy as np
import xxhash

from cache_db.records import Entry, Source
from mrr.errors import CorruptEntry

FORMAT = "1"
_ALIGNMENT = 64  # of the data section in the file, and so of the arrays in memory
_NAMES = {
    "bool": "BOOL",
    "int8": "I8",
    "uint8": "U8",
    "int16": "I16",
    "uint16": "U16",
    "int32": "I32",
    "uint32": "U32",
    "int64": "I64",
    "uint64": "U64",
    "float16": "F16",
    "float32": "F32",
    "float64": "F64",
}
_DTYPES = {name: np.dtype(dtype) for dtype, name in _NAMES.items()}


def digest(data: bytes | memoryview) -> bytes:
    """XXH3-128 of data: 16 bytes. Finds damage, not forgery: who can write here may do both."""
    return xxhash.xxh3_128_digest(data)


def check(data: np.ndarray, expected: bytes) -> None:
    """Raise CorruptEntry unless data has the expected digest."""
    if digest(data.data) != expected:
        raise CorruptEntry("The bytes are not those that were written.")


def encode(key: str, tensors: Mapping[str, np.ndarray], meta: Mapping[str, Any]) -> np.ndarray:
    """The file of an entry as (nbytes,) uint8; ValueError for a dtype the format lacks."""
    # Widest first, so that every array stays aligned to its own item size.
    ordered = sorted(tensors.items(), key=lambda item: (-item[1].dtype.itemsize, item[0]))
    header: dict[str, Any] = {
        "__metadata__": {"format": FORMAT, "key": key, "meta": json.dumps(dict(meta))}
    }
    end = 0
    for name, tensor in ordered:
        if tensor.dtype.name not in _NAMES or name == "__metadata__":
            raise ValueError(f"Tensor {name!r} of {tensor.dtype} cannot be stored.")
        start, end = end, end + tensor.nbytes
        header[name] = {
            "dtype": _NAMES[tensor.dtype.name],
            "shape": list(tensor.shape),
            "data_offsets": [start, end],
        }
    text = json.dumps(header).encode()
    n_head = math.ceil((8 + len(text)) / _ALIGNMENT) * _ALIGNMENT
    data = np.empty(n_head + end, np.uint8)
    head = (n_head - 8).to_bytes(8, "little") + text.ljust(n_head - 8)
    data[:n_head] = np.frombuffer(head, np.uint8)
    for name, tensor in ordered:
        start, end = header[name]["data_offsets"]
        target = data[n_head + start : n_head + end].view(tensor.dtype.newbyteorder("="))
        target.reshape(tensor.shape)[...] = tensor
    return data


def decode(data: np.ndarray, key: str, source: Source) -> Entry:
    """The entry in checked bytes; CorruptEntry if they are of another format or another key."""
    try:
        n_head = 8 + int.from_bytes(data[:8].tobytes(), "little")
        header = json.loads(data[8:n_head].tobytes())
        about = header.pop("__metadata__")
        if (about["format"], about["key"]) != (FORMAT, key):
            raise CorruptEntry(f"The file is of format {about['format']} or of another key.")
        data.flags.writeable = False
        tensors = {name: _view(data[n_head:], spec) for name, spec in header.items()}
        meta = json.loads(about["meta"])
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CorruptEntry("The header cannot be read.") from error
    return Entry(MappingProxyType(tensors), MappingProxyType(meta), data.nbytes, source)


def _view(body: np.ndarray, spec: Mapping[str, Any]) -> np.ndarray:
    start, end = spec["data_offsets"]
    return body[start:end].view(_DTYPES[spec["dtype"]]).reshape(spec["shape"])


def seal(array: np.ndarray) -> bytes:
    """Bytes of a float32 array behind their own digest, for a database column."""
    data = np.ascontiguousarray(array, np.float32).tobytes()
    return digest(data) + data


def unseal(blob: object) -> np.ndarray:
    """The flat float32 array of a sealed column, read-only; CorruptEntry if it is damaged."""
    if not isinstance(blob, bytes):  # SQLite lets anything stand in a column
        raise CorruptEntry("The column holds no bytes.")
    data = blob[16:]
    if digest(data) != blob[:16]:
        raise CorruptEntry("The column's bytes are not those that were written.")
    return np.frombuffer(data, np.float32)
