"""Entry of the child: confines itself, decodes fd 0, and reports on fd 1.

The report is: one JSON line (what the file is); then blocks, each a little-endian uint32 of its bytes and as many bytes
of float32; then a uint32 of 0 and one JSON line, {"ok": true} or {"ok": false, "code": ..., "numbers": {...}}. A file
that is refused before its first block has no first line, and begins with the 0. The words are the parent's: from here
come codes and numbers only.
"""

from __future__ import annotations

import json
import os
import struct
import sys
from typing import TYPE_CHECKING, Any

from runtime.media_child.confine import confine, shut

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

INPUT_FD = 0
OUTPUT_FD = 1


class PipeSink:
    """Writes the report."""

    def begin(self, container: str, codec: str, sample_rate_hz: int, channels: int, declared_s: float) -> None:
        """The first line."""
        head = {
            "container": container,
            "codec": codec,
            "sample_rate_hz": sample_rate_hz,
            "channels": channels,
            "declared_s": declared_s,
        }
        _write(json.dumps(head).encode() + b"\n")

    def block(self, samples: npt.NDArray[np.float32]) -> None:
        """One block, float32 (N,)."""
        data = samples.astype("<f4", copy=False).tobytes()
        _write(struct.pack("<I", len(data)) + data)

    def end(self, code: str | None, numbers: dict[str, Any]) -> None:
        """The last line."""
        tail: dict[str, Any] = {"ok": True} if code is None else {"ok": False, "code": code, "numbers": numbers}
        _write(struct.pack("<I", 0) + json.dumps(tail).encode() + b"\n")


def main(parent_pid: int, memory_bytes_max: int, cpu_s_max: float, seconds_max: float, is_live: bool = False) -> None:
    """Decodes and exits. Never raises: whatever goes wrong becomes the last line.

    is_live: fd 0 is a pipe, and what comes out of it is decoded as it comes.
    """
    sink = PipeSink()
    confine(parent_pid, memory_bytes_max, cpu_s_max)
    try:
        import av
        import av.subtitles.codeccontext
        import av.subtitles.stream  # PyAV imports these when it meets a file; after shut() it could not.
        import av.video.codeccontext
        import av.video.stream

        from runtime.media_child import decode, sniff

        av.logging.set_level(None)
    except (ImportError, MemoryError) as error:
        sink.end("start", {"error": type(error).__name__})
        return
    shut(parent_pid)
    try:
        (decode.decode_live if is_live else decode.decode)(INPUT_FD, decode.Limits(seconds_max, cpu_s_max), sink)
    except sniff.Refused as refused:
        sink.end(refused.code, refused.numbers)
    except MemoryError:
        sink.end("memory", {})
    except BrokenPipeError:
        os._exit(1)
    except Exception as error:  # noqa: BLE001 - handed to the parent, which owns it
        sink.end("failed", {"error": type(error).__name__})
    else:
        sink.end(None, {})


def _write(data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(OUTPUT_FD, view) :]


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3]), float(sys.argv[4]))
