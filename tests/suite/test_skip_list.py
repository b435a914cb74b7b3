"""A skip that the list does not name fails a run, however it came about; one that it names does not."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.running_order import LONGEST
from tests.skip_list import LIST, read

ROOT = Path(__file__).resolve().parents[2]
CONFTEST = """
import re
import pytest
from tests.skip_list import Permitted, SkipList

def pytest_configure(config):
    config.addinivalue_line("markers", "deep: long")
    named = Permitted("test_here_*", re.compile("no .* on this machine"), "It is absent.")
    config.pluginmanager.register(SkipList([named]))
"""
HEAD = "import pytest\ndef test_that_passes(): pass\n"
WAYS = {
    "a call": 'def test_it(): pytest.skip("no need")',
    "a mark": '@pytest.mark.skip(reason="no need")\ndef test_it(): pass',
    "a condition": '@pytest.mark.skipif(True, reason="no need")\ndef test_it(): pass',
    "a fixture": '@pytest.fixture\ndef one(): pytest.skip("no need")\ndef test_it(one): pass',
    "a module": 'pytest.skip("no need", allow_module_level=True)',
    "an import": 'pytest.importorskip("no_such_module")',
    "a failure that is expected": '@pytest.mark.xfail(reason="no need")\ndef test_it(): assert False',
    "a pass that was not expected": '@pytest.mark.xfail(reason="no need")\ndef test_it(): pass',
    "the second try": (
        "tries = []\n@pytest.mark.flaky(reruns=1)\ndef test_it():\n"
        '    tries.append(1)\n    assert len(tries) > 1\n    pytest.skip("no need")'
    ),
    "clean-up": '@pytest.fixture\ndef one():\n    yield\n    pytest.skip("no need")\ndef test_it(one): pass',
}
SIDE_BY_SIDE = pytest.mark.parametrize("options", [[], ["-n", "1", "--reruns", "1"]], ids=["alone", "xdist"])


def run(folder: Path, bodies: list[str], *options: str) -> tuple[int, str]:
    """The exit status of a run of its own over files with these bodies, and what it said."""
    (folder / "conftest.py").write_text(CONFTEST)
    for number, body in enumerate(bodies):
        (folder / f"test_here_{number}.py").write_text(HEAD + body)
    variables = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST")}
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-p",
        "no:cacheprovider",
        "-p",
        "no:schemathesis",
        "--import-mode=importlib",
        *options,
    ]
    done = subprocess.run(
        [*command, str(folder)],
        cwd=folder,
        env={**variables, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, done.stdout + done.stderr


@SIDE_BY_SIDE
def test_a_skip_that_is_not_named_fails_the_run_in_whatever_way_it_came_about(
    options: list[str], tmp_path: Path
) -> None:
    status, said = run(tmp_path, list(WAYS.values()), *options)
    assert status == pytest.ExitCode.TESTS_FAILED, said
    assert " failed" not in said, said
    for number, way in enumerate(WAYS):
        assert f"NOT PERMITTED by skips.toml: test_here_{number}.py" in said, (way, said)


@SIDE_BY_SIDE
def test_a_skip_that_is_named_is_counted_and_fails_nothing(options: list[str], tmp_path: Path) -> None:
    body = (
        'def test_it(): pytest.skip("no PostgreSQL on this machine")\n'
        "@pytest.mark.deep\ndef test_long(): pass\ndef test_other(): pass\n"
    )
    status, said = run(tmp_path, [body], "-m", "not deep", *options)
    assert status == 0, said
    assert "1 of 3 tests skipped, 1 deep tests left to `make check-deep`" in said
    assert "1 × no PostgreSQL on this machine" in said


def test_every_entry_of_the_list_is_about_tests_that_are_there() -> None:
    for entry in read():
        assert list(ROOT.glob(entry.tests)) or list(ROOT.glob(entry.tests.rstrip("*"))), entry.tests
        assert entry.why


def test_every_file_that_is_begun_early_is_there() -> None:
    assert [file for file in LONGEST if not (ROOT / "tests" / file).is_file()] == []
    assert len(set(LONGEST)) == len(LONGEST)


def test_a_tool_may_say_in_several_lines_what_it_lacks() -> None:
    said = "no small file systems: mount: permission denied.\n       dmesg(1) may have more information."
    assert any(entry.names("tests/operations/test_doctor.py::test_a_full_disk_is_named", said) for entry in read())


def test_the_runs_of_this_repository_are_under_the_list(request: pytest.FixtureRequest) -> None:
    assert LIST.is_file()
    assert request.config.pluginmanager.has_plugin("speakerd-skips")


@SIDE_BY_SIDE
def test_why_a_test_had_a_second_try_is_told(tmp_path: Path, options: list[str]) -> None:
    body = "tries = []\n@pytest.mark.flaky(reruns=1)\ndef test_it():\n    tries.append(1)\n    assert tries == [1, 1]"
    status, said = run(tmp_path, [body], *options)
    assert status == 0
    assert "test_here_0.py::test_it: assert [1] == [1, 1]" in said
