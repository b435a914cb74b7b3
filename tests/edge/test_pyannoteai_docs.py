"""The lines of docs/pyannoteai.md do what the page says."""

from __future__ import annotations

import asyncio
import os
import re
from pathlib import Path

from tests.controlplane.conftest import speech, wav
from tests.edge.conftest import Served

PAGE = Path(__file__).resolve().parents[2] / "docs" / "pyannoteai.md"


async def test_the_lines_of_the_page_run_as_they_stand(served: Served, tmp_path: Path) -> None:
    (lines,) = re.findall(r"```sh\n(.*?)```", PAGE.read_text(), re.DOTALL)
    (tmp_path / "talk.wav").write_bytes(wav(speech()))
    variables = {"PATH": os.environ["PATH"], "URL": served.url, "KEY": await served.key("jobs:write")}
    process = await asyncio.create_subprocess_exec(
        "bash", "-euo", "pipefail", "-c", lines,
        cwd=tmp_path, env=variables, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    said, complaints = await process.communicate()
    assert process.returncode == 0, complaints.decode()
    for part in ('"status":"OK"', "succeeded", '"nextCursor"', '"speakers"'):
        assert part in said.decode(), said.decode()
