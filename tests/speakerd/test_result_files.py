"""SRT and pictures of the timeline, from turns to files."""

from __future__ import annotations

import io
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
import typer
from PIL import Image

from speakerd.cli.result_files import FORMATS, Results, formats_of, write_results
from speakerd.rttm import RttmTurn, parse_rttm
from speakerd.srt import srt_text
from speakerd.timeline import SpokenTurn
from speakerd.timeline_layout import LANES_MAX, Layout, lay_out
from speakerd.timeline_picture import PNG_SCALE, png_bytes, svg_text

SVG = "{http://www.w3.org/2000/svg}"
TURNS = [
    RttmTurn(0, 4_000, "Ada Lovelace"),
    RttmTurn(3_000, 6_500, "spk_1"),
    RttmTurn(7_000, 9_000, "Ada Lovelace"),
    RttmTurn(8_000, 8_500, "Bob & <Co>"),
]


def texts(layout: Layout) -> list[str]:
    return [words.text for words in layout.words]


def test_subtitles_are_numbered_timed_and_named_in_order() -> None:
    assert srt_text(reversed(TURNS[:2])) == (
        "1\n00:00:00,000 --> 00:00:04,000\nAda Lovelace\n\n2\n00:00:03,000 --> 00:00:06,500\nspk_1\n"
    )
    assert "01:01:01,007 --> 25:00:00,000\nA B\n" in srt_text([RttmTurn(3_661_007, 90_000_000, "A\n\nB")])
    assert srt_text([]) == ""
    assert "\nA[31m & B\n" in srt_text([RttmTurn(0, 1, "A\x1b[31m\x00 & B\u202e")])


def test_a_file_whose_name_is_no_text_gets_its_results_too(tmp_path: Path) -> None:
    name = b"caf\xe9".decode(errors="surrogateescape")
    turn = SpokenTurn(0, 1_000, "spk_0", "spk_0", "", 0.0)
    for path in write_results(Results([turn], 1_000, name, {"file": name}), name, tmp_path, FORMATS):
        assert path.stat().st_size
    assert "caf?" in (tmp_path / f"{name}.json").read_text()


def test_a_picture_has_a_lane_a_speaker_named_ones_first_and_tells_when_several_speak() -> None:
    layout = lay_out(TURNS, 10_000, "talk.wav")
    lanes = {words.text: words.y for words in layout.words if words.anchor == "end" and words.y > 60}
    assert list(lanes) == ["Ada Lovelace", "Bob & <Co>", "spk_1", "at once"]
    assert sorted(lanes.values()) == list(lanes.values())
    at_once = [bar for bar in layout.bars if abs(bar.top + 4 - (lanes["at once"] - 4)) < 2]
    assert len(at_once) == 2  # 3.0–4.0 and 8.0–8.5
    assert "10 s" not in texts(layout) and {"0:00", "0:05", "0:10"} <= set(texts(layout))
    stranger = [bar for bar in layout.bars if bar.is_stranger]
    assert len(stranger) == 2 and {bar.colour for bar in stranger}.isdisjoint(
        bar.colour for bar in layout.bars if not bar.is_stranger
    )
    assert {"enrolled, by name", "not enrolled (spk_N)", "several at once"} <= set(texts(layout))


def test_bars_lie_where_the_turns_lie_and_nothing_leaves_the_picture() -> None:
    layout = lay_out([RttmTurn(2_500, 5_000, "Ada"), RttmTurn(5_000, 12_000, "Bob")], 10_000, "x")
    first, second = layout.bars[1], layout.bars[0]
    assert second.left == pytest.approx(first.left + first.width)
    assert second.width == pytest.approx(first.width * 7_000 / 2_500)
    for bar in layout.bars:
        assert bar.left >= 0 and bar.left + bar.width <= layout.width and bar.top + bar.height <= layout.height


def test_silence_and_crowds_are_drawn_too() -> None:
    assert "nobody speaks" in texts(lay_out([], 0, "silence.wav"))
    crowd = lay_out([RttmTurn(n * 100, n * 100 + 90, f"spk_{n}") for n in range(LANES_MAX + 3)], 10_000, "crowd")
    assert "and 3 more" in texts(crowd)
    assert "0:00" in texts(lay_out([RttmTurn(0, 90_000_000, "Ada")], 0, "a day and more"))


def test_the_svg_is_well_formed_whatever_people_are_called() -> None:
    root = ET.fromstring(svg_text(lay_out(TURNS, 10_000, "a <b> & \x00 title"), "a <b> & \x00 title"))
    assert root.find(f"{SVG}title").text == "a <b> &  title"  # type: ignore[union-attr]
    assert "Bob & <Co>" in [element.text for element in root.iter(f"{SVG}text")]


def test_the_png_is_drawn_in_the_colours_of_the_layout() -> None:
    layout = lay_out(TURNS, 10_000, "talk.wav")
    image = Image.open(io.BytesIO(png_bytes(layout)))
    assert image.size == (layout.width * PNG_SCALE, layout.height * PNG_SCALE)
    for bar in layout.bars:
        if not bar.is_stranger and bar.width > 4:
            middle = (round((bar.left + bar.width / 2) * PNG_SCALE), round((bar.top + bar.height / 2) * PNG_SCALE))
            assert "#{:02x}{:02x}{:02x}".format(*image.getpixel(middle)) == bar.colour  # type: ignore[misc]
    assert image.getpixel((2, 2)) == (255, 255, 255)


def test_every_format_is_written_under_the_recordings_name(tmp_path: Path) -> None:
    turns = [SpokenTurn(turn.start_ms, turn.end_ms, "spk_0", turn.label, "", 0.0, None) for turn in TURNS]
    results = Results(turns, 10_000, "talk.wav", {"turns": 4})
    written = write_results(results, "talk", tmp_path / "out", FORMATS)
    assert [path.name for path in written] == [f"talk.{suffix}" for suffix in FORMATS]
    assert len(parse_rttm(written[0].read_text())) == 4
    assert written[4].read_bytes().startswith(b"\x89PNG")
    assert write_results(results, "talk", None, FORMATS) == []


def test_formats_are_said_with_commas_and_unknown_ones_refused() -> None:
    assert formats_of("rttm, PNG,rttm") == ["rttm", "png"]
    for wrong in ("", "docx", "rttm,docx"):
        with pytest.raises(typer.BadParameter, match="rttm, json, srt, svg, png"):
            formats_of(wrong)
