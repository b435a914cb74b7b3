"""Places where a test may have this process killed, to see what a restart makes of what was half done.

`SPEAKERD_FAULT_POINT=name` in the environment arms one of them; `name:3` lets it pass twice first. Without the variable
reaching a point is one comparison. The process goes as by kill -9: no clean-up, no flush. Each daemon lists its own.
"""

from __future__ import annotations

import os
import signal

_NAME, _, _COUNT = os.environ.get("SPEAKERD_FAULT_POINT", "").partition(":")
_left = int(_COUNT) if _COUNT.isdigit() else 1


def reach(name: str) -> None:
    """Die here if this point is armed."""
    if name != _NAME:
        return
    global _left  # noqa: PLW0603 - one count a process, which is about to end
    _left -= 1
    if _left <= 0:
        os.kill(os.getpid(), signal.SIGKILL)
