"""How people are labelled whom nobody has enrolled."""

from __future__ import annotations

import re

STRANGER = re.compile(r"spk_\d+")


def is_stranger(label: str) -> bool:
    """Whether a label is a number rather than a name."""
    return STRANGER.fullmatch(label.strip()) is not None
