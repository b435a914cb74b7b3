"""A rule-based machine whose rules await: each example has an event loop and a scratch folder of its own."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Coroutine
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, TypeVar

from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import RuleBasedStateMachine

T = TypeVar("T")


def bounded(examples: int, steps: int) -> settings:
    """How far to look. What is found once is found again: the examples of `make test` are the same each time."""
    return settings(
        max_examples=examples,
        stateful_step_count=steps,
        deadline=None,
        derandomize=examples < 50,
        # An example takes seconds: what is found is read as it is, and not sought for in smaller.
        phases=[Phase.explicit, Phase.reuse, Phase.generate],
        suppress_health_check=list(HealthCheck),
        print_blob=True,
    )


class LoopingMachine(RuleBasedStateMachine):
    """`run` awaits within the example's loop; `open` and `close` are its beginning and its end."""

    def __init__(self) -> None:
        super().__init__()
        self._scratch = tempfile.TemporaryDirectory(prefix="speakerd-machine-")
        self.folder = Path(self._scratch.name)
        self.stack = AsyncExitStack()
        self._runner = asyncio.Runner()
        self.run(self.open())

    async def open(self) -> None:
        """Before the first rule."""

    async def close(self) -> None:
        """After the last one: what holds at the end is asserted here."""

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        return self._runner.run(work)

    def teardown(self) -> None:
        try:
            self.run(self.close())
        finally:
            self.run(self.stack.aclose())
            self._runner.close()
            self._scratch.cleanup()
