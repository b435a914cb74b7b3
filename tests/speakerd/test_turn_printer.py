from __future__ import annotations

import pytest

from speakerd.cli.output import Output
from speakerd.cli.turn_printer import TurnPrinter, clock
from speakerd.v1 import common_pb2, node_pb2


def pieces(*turns: tuple[int, int, str]) -> node_pb2.Turns:
    final = common_pb2.Turn.STATE_FINAL
    return node_pb2.Turns(
        turns=[
            common_pb2.Turn(start_ms=start, end_ms=end, speaker=who, label=who, state=final)
            for start, end, who in turns
        ]
    )


def printed(capsys: pytest.CaptureFixture[str], *events: object) -> list[str]:
    out = Output(as_json=False)
    with out.progress() as progress:
        printer = TurnPrinter(out, progress, progress.add_task("streaming"))
        for event in events:
            printer.take(event)  # type: ignore[arg-type]
    return capsys.readouterr().out.splitlines()


def test_a_long_turn_is_printed_once_when_it_has_ended(capsys: pytest.CaptureFixture[str]) -> None:
    assert printed(
        capsys,
        pieces((0, 500, "ada")),
        pieces((500, 1000, "ada")),
        node_pb2.Progress(final_ms=1000),
        pieces((1000, 1400, "ada"), (1300, 2000, "bob")),
        pieces((2000, 2500, "bob")),
    ) == ["0:00.0 – 0:01.4  ada"]


def test_what_is_open_at_the_end_is_printed_with_the_end(capsys: pytest.CaptureFixture[str]) -> None:
    lines = printed(capsys, pieces((0, 500, "ada")), node_pb2.StreamClosed(duration_ms=500))
    assert lines == ["0:00.0 – 0:00.5  ada"]


def test_silence_after_a_turn_lets_it_be_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert printed(capsys, pieces((0, 500, "ada")), node_pb2.Progress(final_ms=2000)) == ["0:00.0 – 0:00.5  ada"]


def test_a_late_name_is_told_with_its_moment(capsys: pytest.CaptureFixture[str]) -> None:
    known = node_pb2.Relabel(speaker="spk_0", label="Ada", voice_id="v", since_ms=61_250)
    gone = node_pb2.Relabel(speaker="spk_0", label="spk_0", since_ms=70_000)
    assert printed(capsys, known, gone) == ["spk_0 is Ada (since 1:01.2)", "spk_0 is nobody enrolled (since 1:10.0)"]


def test_minutes_never_show_sixty_seconds() -> None:
    assert clock(59_960) == "1:00.0"
