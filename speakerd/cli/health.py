"""`speakerd health`: one question to a daemon, as an exit code; made for the health check of a container.

The address comes from a flag, or from the variable that the daemon itself was given: SPEAKERD_METRICS, else
SPEAKERD_HTTP; else it is that of `speakerd up`. While that brings its engine up, it has not started, though its control
plane has: a container is not healthy before it can do what it is for.
"""

from __future__ import annotations

import asyncio
import os
from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from speakerd.cli.connection import DataOption, data_folder, is_coming_up, read_endpoints, trusted
from speakerd.cli.output import JsonFlag, Output
from speakerd.cli.probes import ask_grpc, ask_http
from speakerd.errors import SpeakerdError

ANYWHERE = {"0.0.0.0": "127.0.0.1", "[::]": "[::1]", "": "127.0.0.1", "*": "127.0.0.1"}  # noqa: S104 - asked, not bound


class Question(Enum):
    """What may be asked."""

    live = "live"
    started = "started"
    ready = "ready"


def health(
    question: Annotated[Question, typer.Argument(help="live, started or ready.")] = Question.ready,
    *,
    http_at: Annotated[
        str | None, typer.Option("--http", metavar="HOST:PORT", help="Where the daemon serves /health.")
    ] = None,
    grpc_at: Annotated[
        str | None, typer.Option("--grpc", metavar="HOST:PORT", help="Ask gRPC's health service there instead.")
    ] = None,
    timeout: Annotated[float, typer.Option(min=0.1, help="Seconds to wait for an answer.")] = 3.0,
    data: DataOption = None,
    as_json: JsonFlag = False,
) -> None:
    """Ask a daemon whether it is live, started or ready. Exit code 0 where it is, 1 where it is not.

    Without --http or --grpc, the daemon is the one that SPEAKERD_METRICS or SPEAKERD_HTTP say the address of, or the
    control plane of `speakerd up`.
    """
    if http_at is not None and grpc_at is not None:
        raise typer.BadParameter("say --http or --grpc, not both")
    out = Output(as_json=as_json)
    word = question.value
    if grpc_at is not None:
        where, answer = grpc_at, asyncio.run(ask_grpc(grpc_at, word, timeout, trusted()))
    else:
        where = http_at or _known_address(data)
        answer = ask_http(where, word, timeout)
    holds = answer.holds
    if holds and http_at is None and grpc_at is None and question is not Question.live:
        holds = not is_coming_up(data_folder(data))
    out.result({"address": where, word: holds})
    out.say(word if holds else f"not {word}", style="green" if holds else "red")
    if not holds:
        raise typer.Exit(1)


def _known_address(data: Path | None) -> str:
    for variable in ("SPEAKERD_METRICS", "SPEAKERD_HTTP"):
        if named := os.environ.get(variable):
            host, _, port = named.rpartition(":")
            return f"{ANYWHERE.get(host, host)}:{port}"
    endpoints = read_endpoints(data_folder(data))
    if endpoints is None:
        raise SpeakerdError(
            "unavailable",
            "no daemon is known here: name one with --http HOST:PORT or --grpc HOST:PORT, or set SPEAKERD_METRICS",
        )
    return endpoints.http.removeprefix("http://")
