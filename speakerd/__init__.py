"""speakerd: speaker diarization that knows people by name.

This package holds what callers need (stubs in `speakerd.v1`, the client, the command line) and imports nothing of the
daemons, so that it can be installed alone. `from speakerd import Client, SpeechTimeline` is where to begin; names are
imported as they are asked for, so that the stubs alone cost no more than themselves.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from speakerd.channel import TlsTrust
    from speakerd.client import Client
    from speakerd.errors import SpeakerdError
    from speakerd.live_stream import LiveStream, Resumed
    from speakerd.node_client import NodeClient
    from speakerd.stream_leg import StreamOptions
    from speakerd.sync_client import SyncClient
    from speakerd.timeline import SpeechTimeline
    from speakerd.uploads import FileOptions

__version__ = "0.1.0"

__all__ = [
    "Client",
    "FileOptions",
    "LiveStream",
    "NodeClient",
    "Resumed",
    "SpeakerdError",
    "SpeechTimeline",
    "StreamOptions",
    "SyncClient",
    "TlsTrust",
]

_HOMES = {
    "Client": "client",
    "FileOptions": "uploads",
    "LiveStream": "live_stream",
    "NodeClient": "node_client",
    "Resumed": "live_stream",
    "SpeakerdError": "errors",
    "SpeechTimeline": "timeline",
    "StreamOptions": "stream_leg",
    "SyncClient": "sync_client",
    "TlsTrust": "channel",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"speakerd.{_HOMES[name]}"), name)
