"""The protocol with one rule broken at a time. Each has to be caught."""

from __future__ import annotations

from tests.simulator.world import Rules

MUTANTS: dict[str, Rules] = {}
