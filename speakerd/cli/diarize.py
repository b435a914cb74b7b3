"""`speakerd diarize`: who spoke when in recordings, with the engine in this process or through a server.

In come recordings and the people to name; out go DIR/STEM.rttm and other formats. One recording that cannot be used
costs the others nothing. The engine is not ours to import: it is found by its entry point, behind `Diarizer`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Annotated, Any, Protocol

import typer

from speakerd.cli.connection import Connection, DataOption, KeyOption, ServerOption, find_connection
from speakerd.cli.diarized import Diarized, diarized_as_json, heard_speaker, percent
from speakerd.cli.failures import failure_of
from speakerd.cli.group import load_installed
from speakerd.cli.output import JsonFlag, Output, results_folder
from speakerd.cli.people import EnrollOption, enroll_or_renew, missing_files, people_to_enroll
from speakerd.cli.result_files import FormatOption, Results, formats_of, write_results
from speakerd.cli.stream import distinct_stems
from speakerd.client import FileOptions
from speakerd.sync_client import SyncClient
from speakerd.timeline import join_touching, spoken_turn
from speakerd.v1 import node_pb2


class Mode(Enum):
    """How much care to take."""

    exact = "exact"
    fast = "fast"


@dataclass(frozen=True, slots=True)
class DiarizeOptions:
    """What is asked of a recording. Numbers of speakers: None where they are to be found out."""

    mode: str
    num_speakers: int | None
    min_speakers: int | None
    max_speakers: int | None


class Diarizer(Protocol):
    """Something that diarizes: the engine in this process, or a server. Its errors have a `cause`."""

    def enroll(self, name: str, files: Sequence[Path]) -> None:
        """Name this person from now on, by recordings of them alone."""
        ...

    def diarize(self, file: Path, options: DiarizeOptions, on_progress: Callable[[int, int], None]) -> Diarized:
        """Diarize a recording. on_progress: milliseconds done, and in all."""
        ...

    def close(self) -> None:
        """Let go of it."""
        ...


def diarize(
    files: Annotated[list[Path], typer.Argument(metavar="FILE…", help="Recordings in any common format.")],
    out_dir: Annotated[
        Path | None, typer.Option("--out", metavar="DIR", help="Write DIR/STEM.rttm, or as --format says.")
    ] = None,
    *,
    formats: FormatOption = "rttm",
    enroll: EnrollOption = None,
    bundle: Annotated[str | None, typer.Option(help="Bundle of weights. Default: builtin.")] = None,
    mode: Annotated[Mode, typer.Option(help="exact, or fast: within 0.1 point of it.")] = Mode.exact,
    device: Annotated[str | None, typer.Option(help="cpu or cuda. Default: cpu.")] = None,
    calibration: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Name people as `speakerd calibrate` has fitted it.")
    ] = None,
    num_speakers: Annotated[int | None, typer.Option(min=1, help="How many people speak, if known.")] = None,
    min_speakers: Annotated[int | None, typer.Option(min=1, help="At least so many.")] = None,
    max_speakers: Annotated[int | None, typer.Option(min=1, help="At most so many.")] = None,
    server: ServerOption = None,
    key: KeyOption = None,
    data: DataOption = None,
    as_json: JsonFlag = False,
) -> None:
    """Tell who spoke when in recordings.

    The engine runs in this process, unless --server names a running one (people named with --enroll stay enrolled
    there). Enrolled people appear under their names, blanks as `_` in RTTM, and others as spk_0, spk_1, …
    """
    out = Output(as_json=as_json)
    wanted = formats_of(formats)
    if min_speakers and max_speakers and min_speakers > max_speakers:
        raise typer.BadParameter("--min-speakers is more than --max-speakers")
    options = DiarizeOptions(mode.value, num_speakers, min_speakers, max_speakers)
    for suffix in wanted:
        distinct_stems(files, f".{suffix}")
    people = people_to_enroll(enroll or [])
    results_folder(out_dir)
    if server is not None and (bundle or device or calibration):
        raise typer.BadParameter(
            "--bundle, --device and --calibration are the server's to choose: leave them out with --server"
        )
    connection = None if server is None else find_connection(server, key, data)
    details = as_json or "json" in wanted
    with _diarizer(
        connection, bundle=bundle, device=device, calibration=calibration, details=details, out=out
    ) as diarizer:
        for name, clips in people.items():
            with out.working(f"enrolling {name}"):
                diarizer.enroll(name, clips)
        results = [_one(diarizer, file, options, out=out, out_dir=out_dir, formats=wanted) for file in files]
    out.result({"files": results})
    if any("error" in result for result in results):
        raise typer.Exit(1)


def _one(
    diarizer: Diarizer,
    file: Path,
    options: DiarizeOptions,
    *,
    out: Output,
    out_dir: Path | None,
    formats: Sequence[str],
) -> dict[str, Any]:
    try:
        missing_files([file])
        with out.progress() as progress:
            task = progress.add_task(file.name, total=None)
            heard = diarizer.diarize(
                file, options, lambda done_ms, all_ms: progress.update(task, completed=done_ms, total=all_ms or None)
            )
        results = Results(heard.turns, heard.duration_ms, file.name, diarized_as_json(heard))
        written = write_results(results, file.stem, out_dir, formats)
    except Exception as error:
        failure = failure_of(error)
        if failure.cause == "internal":
            raise
        out.error(failure.message if str(file) in failure.message else f"{file}: {failure.message}")
        return {"file": str(file), "error": {"cause": failure.cause, "message": failure.message}}
    _show(heard, file, out, written)
    return {"file": str(file), **diarized_as_json(heard), **{path.suffix[1:]: str(path) for path in written}}


def _show(heard: Diarized, file: Path, out: Output, written: Sequence[Path]) -> None:
    spoken_ms: dict[str, int] = {}
    for turn in heard.turns:
        spoken_ms[turn.label] = spoken_ms.get(turn.label, 0) + turn.end_ms - turn.start_ms
    ranked = sorted(spoken_ms.items(), key=lambda item: -item[1])
    speakers = ", ".join(f"{label} {ms / 1000:.1f} s" for label, ms in ranked) or "nobody speaks"
    out.say(f"{file.name} ({heard.duration_ms / 1000:.1f} s): {speakers}", style="bold")
    if not written:
        for turn in heard.turns:
            out.say(f"{turn.start_ms / 1000:9.2f} – {turn.end_ms / 1000:9.2f}  {turn.label}")
    for warning in heard.warnings:
        out.note(f"{file.name}: {warning}", style="yellow")
    for path in written:
        out.note(f"written to {path}")


@contextmanager
def _diarizer(
    connection: Connection | None,
    *,
    bundle: str | None,
    device: str | None,
    calibration: Path | None,
    details: bool,
    out: Output,
) -> Iterator[Diarizer]:
    diarizer: Diarizer
    if connection is not None:
        diarizer = _ServerDiarizer(connection, details=details)
    else:
        open_engine = load_installed("speakerd.engine", "local", extra="node", what_for="diarizing in this process")
        with out.working("loading the engine"):
            diarizer = open_engine(bundle or "builtin", device or "cpu", calibration)
    try:
        yield diarizer
    finally:
        diarizer.close()


class _ServerDiarizer:
    """A control plane, diarizing one recording at a time. details: embeddings and confidences are wanted."""

    def __init__(self, connection: Connection, *, details: bool) -> None:
        self._connection = connection
        self._details = details
        self._client: SyncClient | None = None

    def enroll(self, name: str, files: Sequence[Path]) -> None:
        """Enrol a person, for good."""
        asyncio.run(self._enroll(name, files))

    async def _enroll(self, name: str, files: Sequence[Path]) -> None:
        async with self._connection.open() as client:
            await enroll_or_renew(client, name, files)

    def diarize(self, file: Path, options: DiarizeOptions, on_progress: Callable[[int, int], None]) -> Diarized:
        """Send a recording and wait for its result."""
        # Made only now: two event loops at once would take gRPC's events from one another.
        self._client = self._client or SyncClient(self._connection.address, self._connection.key)
        pieces: list[node_pb2.FileConfidence] = []
        result = self._client.diarize_file(
            file,
            FileOptions(
                mode=node_pb2.FileOpen.MODE_FAST if options.mode == "fast" else node_pb2.FileOpen.MODE_EXACT,
                num_speakers=options.num_speakers or 0,
                min_speakers=options.min_speakers or 0,
                max_speakers=options.max_speakers or 0,
                embeddings=self._details,
                on_confidence=pieces.append if self._details else None,
            ),
            on_progress=lambda progress: on_progress(progress.processed_ms, progress.duration_ms),
        )
        return Diarized(
            turns=join_touching(map(spoken_turn, result.turns)),
            exclusive_turns=join_touching(map(spoken_turn, result.exclusive_turns)),
            duration_ms=result.duration_ms,
            warnings=list(result.warnings),
            speakers=list(map(heard_speaker, result.speakers)),
            frame_ms=pieces[0].frame_ms if pieces else 0,
            frame_confidence=percent(b"".join(piece.values for piece in pieces)),
        )

    def close(self) -> None:
        """Hang up."""
        if self._client is not None:
            self._client.close()
