"""ScaiEcho's permissions, by the names that API keys carry."""

from __future__ import annotations

TRANSCRIBE = "scaiecho:transcribe"
DIARIZE = "scaiecho:diarize"
"""Asked for on top of TRANSCRIBE, when a stream is opened that wants speakers."""
ENROLL = "scaiecho:enroll"
