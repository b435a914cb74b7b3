"""The fault matrix: what goes wrong, what has to hold all the same, and which tests make it go wrong.

In: nothing, or the folder of tests. Out: cells, promises, and the tests that are marked with them, read from their
source. A test names its cell and promise itself, `@pytest.mark.fault("F1", "P6")`, in plain strings, once per cell.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

PROMISES = {
    "P1": "after `erased` nothing names the voice, and no row of a device is used again before it is wiped",
    "P2": "an erasure is proven within 2.5 s (p99) on a healthy fleet, and within 15 s whatever its nodes do",
    "P3": "a node names nobody before it holds exactly what it should",
    "P4": "Redis may be lost at any moment: no enrolment, erasure, audit row or running stream with it",
    "P5": "an enrolment is whole or absent, happens once, and needs nobody's help to get there",
    "P6": "a stream outlives its node: noticed at once when it dies, within 3 s when it falls silent; no sound is lost",
    "P7": "a slow client costs a bounded amount of memory and nothing of anybody else's time",
    "P8": "what is too much is refused at once, with when to come back; who was admitted is served on time",
    "P9": "a restart hands every stream over: no client sees an error",
    "P10": "without the database streams go on, and nothing is acknowledged that was not written",
    "P11": "nothing crosses from one tenant to another",
    "P12": "no voice, name or recording lies in the clear",
    "P13": "the audit trail can be verified, and tells of every act once",
    "P14": "bad input gets an error that says what is wrong with it, and harms nobody else",
    "P15": "webhooks are delivered at least once, signed, and to nobody inside",
}


@dataclass(frozen=True, slots=True)
class Cell:
    """One kind of fault, and how the tests bring it about."""

    fault: str
    how: str


CELLS = {
    "F1": Cell("a node is killed under its streams", "kill -9"),
    "F2": Cell("a node is killed while it enrols", "kill -9 at each step: before the write, after it, before its word"),
    "F3": Cell("a node is killed while it erases", "kill -9 at each step of an eviction"),
    "F4": Cell("the control plane is killed in mid-enrolment or mid-erasure", "kill -9 after each step of either"),
    "F5": Cell("a node freezes and wakes", "SIGSTOP for 3 s and for 60 s, erasures meanwhile, SIGCONT"),
    "F6": Cell("the control plane freezes, or Redis does", "SIGSTOP, SIGCONT"),
    "F7": Cell("a node is cut off from the control plane alone", "its port in the fleet's network pulled"),
    "F8": Cell("a node is cut off from its clients, in both directions or one", "its port pulled; iptables in one way"),
    "F9": Cell("a peer of an idle stream vanishes without a word", "blackhole: no reset, no packet"),
    "F10": Cell("Redis loses what it held", "FLUSHALL; killed and empty; an old file; failover of Sentinels"),
    "F11": Cell("Redis is slow, or cannot write", "a proxy that delays; a full disk under its file"),
    "F12": Cell("the database is down, locked or full", "stopped; a lock that is held; a file system of 1 MiB"),
    "F13": Cell("an old backup is restored", "a database from before an erasure"),
    "F14": Cell("the store of recordings is down, slow or refuses", "a store that fails; a proxy that delays"),
    "F15": Cell("the device is out of memory, or lost", "a device that raises"),
    "F16": Cell("poison audio among good streams", "bombs, playlists, lies in headers, nothing at all, at every door"),
    "F17": Cell("a client reads slowly, not at all, or sends a byte a second", "one such client among many good ones"),
    "F18": Cell("ten thousand connects, and clients who never finish a word", "sockets that are opened and left"),
    "F19": Cell("clocks jump", "the wall clock by hours; the clock of leases by an offset"),
    "F20": Cell("two nodes of one name, and messages that come twice", "a second process; a clone; replayed calls"),
    "F21": Cell("everything is restarted under load", "SIGTERM to each node and control plane in turn"),
    "F22": Cell("the network loses packets, or is slow", "iptables drops 30 %; a bucket of 1 Mbit/s"),
    "F23": Cell("descriptors run out, a thread dies, the loop stands still", "limits; injected failures"),
    "F24": Cell("twice as much is asked as there is room for", "streams, enrolments and jobs past the limits"),
    "F25": Cell("anything, in any order", "random faults from a seed, with a checker over the whole history"),
    "F26": Cell("tickets and certificates expire", "short-lived ones, under running streams"),
}


@dataclass(frozen=True, slots=True)
class Marked:
    """A test of one cell. test: its id without parameters, from the folder of tests."""

    cell: str
    promises: tuple[str, ...]
    test: str
    deep: bool


def marked(tests: Path) -> list[Marked]:
    """Every test that is marked with a cell, in the order of the cells."""
    found = [one for path in sorted(tests.rglob("test_*.py")) for one in _marked_in(path, tests)]
    return sorted(found, key=lambda one: (int(one.cell[1:]), one.test))


def check(cell: str, promises: tuple[str, ...]) -> None:
    """Raise ValueError for a mark that names what is not in the matrix."""
    unknown = {cell} - CELLS.keys() | set(promises) - PROMISES.keys()
    if unknown or not promises:
        raise ValueError(
            f"a fault is marked with a cell and its promises, and {sorted(unknown) or 'nothing'} is neither"
        )


def _marked_in(path: Path, tests: Path) -> Iterator[Marked]:
    source = path.read_text(encoding="utf-8")
    if "mark.fault" not in source:
        return
    for function in ast.parse(source).body:
        if not isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        deep = any(ast.unparse(one) == "pytest.mark.deep" for one in function.decorator_list)
        for decorator in function.decorator_list:
            if isinstance(decorator, ast.Call) and ast.unparse(decorator.func) == "pytest.mark.fault":
                cell, *promises = (str(ast.literal_eval(argument)) for argument in decorator.args)
                check(cell, tuple(promises))
                name = f"{path.relative_to(tests.parent).as_posix()}::{function.name}"
                yield Marked(cell, tuple(promises), name, deep)
