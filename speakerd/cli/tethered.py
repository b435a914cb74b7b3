"""`python -m speakerd.cli.tethered PARENT_PID ARGS…`: a speakerd command that dies with the process that started it.

On Linux the kernel kills us when our parent ends, however it ends, so that `kill -9` on `speakerd up` leaves nothing
behind. Elsewhere we run untied. The signal is SIGKILL: a parent that was killed is no longer there to wait for a drain,
and what was enrolled is durable.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

from speakerd.cli import main

PR_SET_PDEATHSIG = 1


def tie(parent_pid: int) -> None:
    """Die with the parent; at once, if it is gone already."""
    if not sys.platform.startswith("linux"):
        return
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
    if os.getppid() != parent_pid:
        sys.exit(1)


if __name__ == "__main__":
    tie(int(sys.argv[1]))
    sys.argv = ["speakerd", *sys.argv[2:]]
    main()
