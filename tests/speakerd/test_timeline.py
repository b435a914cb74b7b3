from __future__ import annotations

from speakerd.timeline import SpeechTimeline
from speakerd.v1 import common_pb2, node_pb2


def piece(start_ms: int, end_ms: int, speaker: str, label: str = "", *, final: bool = True) -> common_pb2.Turn:
    state = common_pb2.Turn.STATE_FINAL if final else common_pb2.Turn.STATE_PROVISIONAL
    return common_pb2.Turn(start_ms=start_ms, end_ms=end_ms, speaker=speaker, label=label or speaker, state=state)


def lines(timeline: SpeechTimeline) -> list[tuple[int, int, str]]:
    return [(turn.start_ms, turn.end_ms, turn.label) for turn in timeline.turns()]


def test_touching_pieces_of_a_speaker_are_one_turn() -> None:
    timeline = SpeechTimeline()
    timeline.add([piece(0, 500, "spk_0"), piece(400, 900, "spk_1")])
    timeline.add([piece(500, 1000, "spk_0"), piece(1100, 1200, "spk_0")])
    assert lines(timeline) == [(0, 1000, "spk_0"), (400, 900, "spk_1"), (1100, 1200, "spk_0")]


def test_provisional_turns_leave_no_trace() -> None:
    timeline = SpeechTimeline()
    timeline.add([piece(0, 500, "spk_0"), piece(500, 900, "spk_0", final=False)])
    assert lines(timeline) == [(0, 500, "spk_0")]


def test_a_relabel_names_what_ends_after_its_moment_and_nothing_before() -> None:
    timeline = SpeechTimeline()
    timeline.add([piece(0, 500, "spk_0"), piece(600, 1000, "spk_0"), piece(1000, 1500, "spk_1")])
    timeline.take(node_pb2.Relabel(speaker="spk_0", label="alice", voice_id="v0", probability=0.9, since_ms=500))
    timeline.add([piece(1500, 2000, "spk_0", "alice")])
    assert lines(timeline) == [
        (0, 500, "spk_0"),
        (600, 1000, "alice"),
        (1000, 1500, "spk_1"),
        (1500, 2000, "alice"),
    ]
    assert timeline.as_json()[1]["voice_id"] == "v0"


def test_two_speakers_who_turn_out_to_be_one_are_joined_where_they_touch() -> None:
    timeline = SpeechTimeline()
    timeline.add([piece(0, 500, "spk_0"), piece(500, 900, "spk_1")])
    timeline.relabel(node_pb2.Relabel(speaker="spk_1", label="spk_0", since_ms=0))
    assert lines(timeline) == [(0, 900, "spk_0")]


def test_the_label_of_a_stretch_is_who_speaks_most_in_it() -> None:
    timeline = SpeechTimeline()
    timeline.add([piece(0, 1000, "spk_0"), piece(800, 2000, "spk_1")])
    assert timeline.label(0.0, 1.5) == "spk_0"
    assert timeline.label(0.9, 2.0) == "spk_1"
    assert timeline.label(2.0, 3.0) is None


def test_rttm_lines_carry_the_labels_that_hold_now() -> None:
    timeline = SpeechTimeline()
    timeline.add([piece(250, 1000, "spk_0")])
    timeline.relabel(node_pb2.Relabel(speaker="spk_0", label="Ada Lovelace", since_ms=0))
    assert timeline.rttm_lines("call") == ["SPEAKER call 1 0.250 0.750 <NA> <NA> Ada_Lovelace <NA> <NA>"]
