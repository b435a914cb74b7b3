"""speakerd: speaker diarization that knows people by name.

This package holds what callers need (stubs in `speakerd.v1`, the client, the command line) and imports nothing of the
daemons, so that it can be installed alone.
"""

__version__ = "0.1.0"
