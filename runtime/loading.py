"""Loading what stays: without looking through it for garbage, now or later.

A daemon imports well over a thousand modules, which make hundreds of thousands of objects and next to no garbage; the
collector would go through all of them again and again while they come in, a quarter of the time that it takes.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def loading() -> Iterator[None]:
    """Within: nothing is collected. Behind it: collecting goes on as before, and leaves out what there is by then."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if was_enabled:
            gc.enable()
