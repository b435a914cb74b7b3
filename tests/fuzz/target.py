"""What a target is, what it may raise, and mutations that need no instrumentation."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path

from runtime.errors import Cause, SpeakerdError

FOUND = Path(__file__).with_name("found")
INPUT_BYTES_MAX = 64 << 10

One = Callable[[bytes], object]


@dataclass(frozen=True)
class Target:
    """opened: gives the function that takes one input. replays: mutations of seeds that `make test` tries."""

    name: str
    opened: Callable[[], AbstractContextManager[One]]
    seeds: Callable[[], Iterable[bytes]]
    replays: int = 400
    is_fast: bool = True

    def found(self) -> list[bytes]:
        """Inputs that failed once."""
        return [path.read_bytes() for path in sorted((FOUND / self.name).glob("*"))]


def plain(one: One) -> Callable[[], AbstractContextManager[One]]:
    """For a target that needs nothing around it."""

    @contextmanager
    def opened() -> Iterator[One]:
        yield one

    return opened


def refused(error: SpeakerdError) -> None:
    """A refusal is what bad input gets; a fault of ours is none."""
    if error.cause is Cause.INTERNAL:
        raise AssertionError(f"bad input is called our fault: {error}") from error


def mutated(data: bytes, chance: random.Random, others: list[bytes]) -> bytes:
    """Some of the bytes changed, dropped, doubled, or put together with those of another input."""
    made = bytearray(data)
    for _ in range(chance.choice((1, 1, 2, 3, 8))):
        at = chance.randrange(len(made) + 1)
        match chance.randrange(7):
            case 0 if made:
                made[at % len(made)] ^= 1 << chance.randrange(8)
            case 1 if made:
                made[at % len(made)] = chance.choice((0, 1, 0x7F, 0x80, 0xFF, 0x7B, 0x22, 0x2E, chance.randrange(256)))
            case 2:
                made[at:at] = chance.randbytes(chance.choice((1, 2, 4, 16)))
            case 3:
                del made[at : at + chance.choice((1, 2, 4, 16, len(made)))]
            case 4:
                made[at:at] = made[at : at + chance.choice((1, 4, 64))]
            case 5:
                size = chance.choice((2, 4, 8))
                value = chance.choice((0, 1, 0x7F, 0xFF, (1 << 8 * size - 1) - 1, (1 << 8 * size) - 1))
                made[at : at + size] = value.to_bytes(size, chance.choice(("big", "little")))
            case _:
                other = chance.choice(others)
                start = chance.randrange(len(other) + 1)
                made[at:] = other[start:]
    return bytes(made[:INPUT_BYTES_MAX])


def mutations(seeds: list[bytes], number: int, seed: int = 0) -> Iterator[bytes]:
    """The same ones whenever it is called with the same."""
    chance = random.Random(seed)
    for index in range(number):
        yield mutated(seeds[index % len(seeds)], chance, seeds)
