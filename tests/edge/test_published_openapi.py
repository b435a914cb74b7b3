"""Every dialect keeps its published OpenAPI document: schemathesis finds no 500 and no answer that is not in it."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

import pytest

from edge.app import DIALECTS
from tests.edge.conftest import Served, Serving
from tests.speakerd.running import environment

CHECKS = (
    "not_a_server_error,status_code_conformance,content_type_conformance,response_headers_conformance,"
    "response_schema_conformance,unsupported_method,allow_header_conformance,ignored_auth"
)
NO_RATES = {limit.kind: 0 for dialect in DIALECTS for limit in dialect.rates}


async def schemathesis(served: Served, dialect: str, folder: Path, *options: str) -> None:
    """Run it against a dialect's document, and fail with what it says."""
    command = [
        str(Path(sys.executable).with_name("schemathesis")), "run", f"{served.url}/openapi/{dialect}.json",
        "--url", served.url, "--header", f"Authorization: Bearer {served.admin_key}", "--checks", CHECKS,
        "--no-color", "--warnings", "off", "--request-timeout", "60", "--suppress-health-check", "all", *options,
    ]  # fmt: skip
    # To a file, so that a run of an hour can be looked at meanwhile.
    said = folder / "said.txt"
    with said.open("wb") as written:
        process = await asyncio.create_subprocess_exec(
            *command,
            cwd=folder,
            env={**environment(), "COLUMNS": "160", "PATH": os.environ["PATH"]},
            stdout=written,
            stderr=asyncio.subprocess.STDOUT,
        )
        status = await process.wait()
    assert status == 0, said.read_text(errors="replace")


@pytest.mark.parametrize("dialect", [dialect.name for dialect in DIALECTS])
async def test_every_answer_is_in_the_published_document(dialect: str, serving: Serving, tmp_path: Path) -> None:
    served = await serving(nodes=1, http_rate_limits=NO_RATES)
    await schemathesis(served, dialect, tmp_path, "--phases", "examples,fuzzing", "--max-examples", "4", "--seed", "1")


@pytest.mark.deep
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("dialect", [dialect.name for dialect in DIALECTS])
async def test_every_answer_is_in_the_published_document_however_long_one_looks(
    dialect: str, serving: Serving, tmp_path: Path
) -> None:
    served = await serving(nodes=1, http_rate_limits=NO_RATES)
    await schemathesis(served, dialect, tmp_path, "--max-examples", "300")
