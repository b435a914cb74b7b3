"""Keys that change by themselves: of stream tickets, and of checkpoints.

In: one secret of the data folder and the time. Out: the key of the day, and those of the days beside it. What always
holds: control planes that share their secrets have the same keys without a word between them; what was made with
yesterday's key is taken today; a secret derived for one day tells nothing of another.
"""

from __future__ import annotations

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from runtime.clock import Clock

PERIOD_S = 86_400
"""Both tickets and checkpoints live for minutes; clocks may differ by hours."""


class TicketSigner:
    """Signs stream tickets. Handed to nodes are the public keys alone."""

    def __init__(self, secret: bytes, clock: Clock) -> None:
        self._secret = secret
        self._clock = clock

    def __repr__(self) -> str:
        return "TicketSigner()"

    def sign(self, data: bytes) -> bytes:
        """The signature under today's key."""
        return self._key(_periods(self._clock)[0]).sign(data)

    def public_keys(self) -> tuple[bytes, ...]:
        """Whose tickets are good: today's key, yesterday's and tomorrow's, 32 bytes each."""
        return tuple(self._key(period).public_key().public_bytes_raw() for period in _periods(self._clock))

    def _key(self, period: int) -> Ed25519PrivateKey:
        return Ed25519PrivateKey.from_private_bytes(_derived(self._secret, "stream tickets", period))


class CheckpointKeys:
    """The secrets under which nodes seal the state of streams."""

    def __init__(self, secret: bytes, clock: Clock) -> None:
        self._secret = secret
        self._clock = clock

    def __repr__(self) -> str:
        return "CheckpointKeys()"

    def current(self) -> tuple[bytes, ...]:
        """The one that seals first, then those that open too; 32 bytes each."""
        return tuple(_derived(self._secret, "stream checkpoints", period) for period in _periods(self._clock))


def _periods(clock: Clock) -> tuple[int, int, int]:
    now = int(clock.wall_s()) // PERIOD_S
    return now, now - 1, now + 1


def _derived(secret: bytes, what_for: str, period: int) -> bytes:
    return HKDF(hashes.SHA256(), 32, salt=None, info=f"speakerd {what_for} {period}".encode()).derive(secret)
