"""Every critical guard is there, once, and taking it out fails a test."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.mutations.running import ROOT, Guard, copied, guards, noticed, run

GUARDS = guards()
QUICK = ("a ticket ends", "the hold rule")
"""Those of which `make test` takes the guard out; `make check-deep` does so with all."""


@pytest.mark.parametrize("guard", GUARDS, ids=[guard.name for guard in GUARDS])
def test_a_guard_is_where_the_list_says_and_so_are_its_tests(guard: Guard) -> None:
    assert guard.mutated((ROOT / guard.file).read_text()) != (ROOT / guard.file).read_text()
    for test in guard.tests:
        path, _, name = test.partition("::")
        assert f"def {name}" in (ROOT / path).read_text(), test


def test_names_of_guards_are_theirs_alone() -> None:
    assert len({guard.name for guard in GUARDS}) == len(GUARDS) >= 25
    assert set(QUICK) <= {guard.name for guard in GUARDS}


def test_a_few_guards_are_missed_when_they_are_gone(tmp_path: Path) -> None:
    tree = copied(tmp_path)
    for guard in GUARDS:
        if guard.name in QUICK:
            assert noticed(tree, guard) == "", guard.name


def test_a_mutation_that_changes_nothing_is_told_from_one_that_is_noticed(tmp_path: Path) -> None:
    guard = next(one for one in GUARDS if one.name == "a ticket ends")
    same = Guard("none", guard.file, guard.old, guard.old, guard.tests)
    broken = Guard("broken", guard.file, guard.old, ("    if (",), guard.tests)
    tree = copied(tmp_path)
    assert noticed(tree, same) == "all tests pass without it"
    assert "did not run" in noticed(tree, broken)


@pytest.mark.deep
@pytest.mark.timeout(3600)
def test_every_guard_is_missed_when_it_is_gone(tmp_path: Path) -> None:
    tree = copied(tmp_path)
    status, said = run(tree, tuple(sorted({test for guard in GUARDS for test in guard.tests})))
    assert status == pytest.ExitCode.OK, said[-4_000:]
    survived = {guard.name: problem for guard in GUARDS if (problem := noticed(tree, guard))}
    assert not survived, survived
