"""State as bytes and back: named values and arrays in a compact, versioned form that is read without executing it.

In: a JSON-able mapping and NumPy arrays. Out: bytes, and from them the same again, to the bit. What always holds: bytes
of another kind or version, cut short, or that would unfold beyond a bound, raise InvalidRequest and build nothing.
"""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from runtime.errors import InvalidRequest

_MAGIC = b"spkd"
_HEADER = struct.Struct("<4sHI")  # magic, version, length of the JSON that follows
_DTYPES = {"u1": np.uint8, "f2": np.float16, "f4": np.float32, "i4": np.int32, "i8": np.int64}
_COMPACT = json.JSONEncoder(separators=(",", ":"))
_CODES = {np.dtype(dtype): code for code, dtype in _DTYPES.items()}


def pack_state(version: int, values: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> bytes:
    """Values and arrays (of u1, f2, f4, i4 or i8) as bytes."""
    index = [[name, _CODES[array.dtype], list(array.shape)] for name, array in arrays.items()]
    text = _COMPACT.encode({"values": values, "arrays": index}).encode()
    body = text + b"".join(np.ascontiguousarray(array).tobytes() for array in arrays.values())
    # Stored, not compressed, which took as long as a step of the stream, for a fifth less where voices are real ones
    # (0.6 ms, 45 kB). What older releases compressed is read all the same.
    return _HEADER.pack(_MAGIC, version, len(text)) + zlib.compress(body, 0)


def unpack_state(data: bytes, version: int, *, bytes_max: int) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """What `pack_state` was given. InvalidRequest if damaged, of another version, or larger than `bytes_max`."""
    try:
        magic, found, text_bytes = _HEADER.unpack_from(data)
        if magic != _MAGIC or found != version:
            raise InvalidRequest("the checkpoint is of another version; start the stream anew")
        unfold = zlib.decompressobj()
        body = unfold.decompress(data[_HEADER.size :], bytes_max)
        if not unfold.eof:
            raise InvalidRequest("the checkpoint is cut short or too large; start the stream anew")
        header = json.loads(body[:text_bytes])
        arrays, at = {}, text_bytes
        for name, code, shape in header["arrays"]:
            dtype = np.dtype(_DTYPES[code])
            count = int(np.prod(shape, dtype=np.int64))
            arrays[str(name)] = np.frombuffer(body, dtype, count, at).reshape(shape).copy()
            at += count * dtype.itemsize
        return dict(header["values"]), arrays
    except (struct.error, zlib.error, ValueError, KeyError, TypeError) as error:
        raise InvalidRequest("the checkpoint is damaged; start the stream anew") from error
