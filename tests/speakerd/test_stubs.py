"""The stubs that are checked in are those of the contract."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent


def test_the_stubs_in_the_repository_are_those_that_the_contract_generates(tmp_path: Path) -> None:
    # protoc finds its plugins on PATH, beside the interpreter.
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    command = [sys.executable, str(ROOT / "scripts" / "generate_stubs.py"), str(tmp_path)]
    subprocess.run(command, check=True, capture_output=True, env={**os.environ, "PATH": path})
    generated = sorted((tmp_path / "speakerd" / "v1").glob("*_pb2*"))
    checked_in = ROOT / "speakerd" / "v1"
    assert {path.name for path in generated} == {path.name for path in checked_in.glob("*_pb2*")}
    stale = [path.name for path in generated if path.read_bytes() != (checked_in / path.name).read_bytes()]
    assert stale == [], "run `make proto`"
