"""Where everything of a timeline picture goes: one layout, which SVG and PNG draw alike.

In come turns; out come rectangles, lines and words in pixels. One lane a speaker, named ones first and by how much they
speak; where several speak at once a lane of its own says so; the axis has round times.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from speakerd.rttm import RttmTurn
from speakerd.strangers import is_stranger

WIDTH = 1200
NAME_WIDTH = 216
SHARE_WIDTH = 110
MARGIN = 24
HEAD = 64
LANE = 34
BAR = 20
OVERLAP_LANE = 20
AXIS = 34
LEGEND = 30
LANES_MAX = 40
NAME_CHARACTERS_MAX = 22
TICKS_MAX = 12
STEPS_S = (1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 14_400)

NAMED = ("#2f6db5", "#d1701c", "#2f8f5b", "#a23b72", "#7a5cc2", "#a07d12", "#1b8a9a", "#b8413a")
STRANGERS = ("#8d96a3", "#a9a197", "#7f8f8a", "#a59aa8")
OVERLAP = "#c0262d"


@dataclass(frozen=True, slots=True)
class Bar:
    """A turn. Pixels."""

    left: float
    top: float
    width: float
    height: float
    colour: str
    is_stranger: bool


@dataclass(frozen=True, slots=True)
class Words:
    """A text; x is where it begins, ends or has its middle, by `anchor` (start, end, middle); y its baseline."""

    text: str
    x: float
    y: float
    size: int
    colour: str
    anchor: str = "start"
    is_bold: bool = False


@dataclass(frozen=True, slots=True)
class Rule:
    """A line from (x1, y1) to (x2, y2)."""

    x1: float
    y1: float
    x2: float
    y2: float
    colour: str


@dataclass(frozen=True, slots=True)
class Layout:
    """A picture."""

    width: int
    height: int
    rules: Sequence[Rule]
    bars: Sequence[Bar]
    words: Sequence[Words]


def lay_out(turns: Sequence[RttmTurn], duration_ms: int, title: str) -> Layout:
    """The picture of a recording. duration_ms: how long it is; turns that end later make it longer."""
    duration_ms = max([duration_ms, 1, *(turn.end_ms for turn in turns)])
    spoken = _spoken_ms(turns)
    labels = sorted(spoken, key=lambda label: (is_stranger(label), -spoken[label], label))
    left_out = labels[LANES_MAX:]
    labels = labels[:LANES_MAX]
    colours = _colours(labels)
    together = _together(turns)
    plot_left, plot_right = MARGIN + NAME_WIDTH, WIDTH - MARGIN - SHARE_WIDTH
    scale = (plot_right - plot_left) / duration_ms
    lanes_bottom = HEAD + LANE * max(1, len(labels))
    bottom = lanes_bottom + (OVERLAP_LANE if together else 0)
    rules: list[Rule] = []
    words = [Words(_shortened(title, 90), MARGIN, 34, 19, "#16202c", is_bold=True)]
    talk = f"{_clock(duration_ms)} long, {len(spoken)} {'speaker' if len(spoken) == 1 else 'speakers'}"
    words.append(Words(talk, WIDTH - MARGIN, 34, 13, "#5a6675", "end"))
    bars: list[Bar] = []
    for row, label in enumerate(labels):
        top = HEAD + LANE * row
        middle = top + LANE / 2
        rules.append(Rule(plot_left, middle, plot_right, middle, "#e3e7ec"))
        stranger = is_stranger(label)
        words.append(
            Words(_shortened(label, NAME_CHARACTERS_MAX), plot_left - 12, middle + 5, 14,
                  "#5a6675" if stranger else "#16202c", "end", is_bold=not stranger)
        )  # fmt: skip
        share = f"{_clock(spoken[label])}  {spoken[label] / duration_ms:.0%}"
        words.append(Words(share, plot_right + 12, middle + 5, 12, "#5a6675"))
        for turn in turns:
            if turn.label == label:
                left, width = plot_left + turn.start_ms * scale, (turn.end_ms - turn.start_ms) * scale
                bars.append(Bar(left, middle - BAR / 2, max(1.0, width), BAR, colours[label], stranger))
    if not labels:
        words.append(Words("nobody speaks", (plot_left + plot_right) / 2, HEAD + LANE / 2 + 5, 14, "#5a6675", "middle"))
    if together:
        middle = lanes_bottom + OVERLAP_LANE / 2
        words.append(Words("at once", plot_left - 12, middle + 4, 12, OVERLAP, "end"))
        words.append(
            Words(_clock(sum(end - start for start, end in together)), plot_right + 12, middle + 4, 12, OVERLAP)
        )
        bars += [
            Bar(plot_left + start * scale, middle - 4, max(1.0, (end - start) * scale), 8, OVERLAP, is_stranger=False)
            for start, end in together
        ]
    step_ms = _step_ms(duration_ms)
    for at_ms in range(0, duration_ms + 1, step_ms):
        x = plot_left + at_ms * scale
        rules.append(Rule(x, HEAD - 6, x, bottom + 6, "#c9d0d8" if at_ms == 0 else "#eceff3"))
        words.append(Words(_clock(at_ms, fine=step_ms < 1000), x, bottom + 24, 12, "#5a6675", "middle"))
    rules.append(Rule(plot_left, bottom + 6, plot_right, bottom + 6, "#c9d0d8"))
    legend_top = bottom + AXIS + 8
    at = float(plot_left)
    entries = [("enrolled, by name", NAMED[0], False)] if any(not is_stranger(label) for label in labels) else []
    entries += [("not enrolled (spk_N)", STRANGERS[0], True)] if any(map(is_stranger, labels)) else []
    entries += [("several at once", OVERLAP, False)] if together else []
    for text, colour, stranger in entries:
        bars.append(Bar(at, legend_top, 22, 12, colour, stranger))
        words.append(Words(text, at + 30, legend_top + 11, 12, "#5a6675"))
        at += 60 + 7 * len(text)
    if left_out:
        words.append(Words(f"and {len(left_out)} more", at, legend_top + 11, 12, "#5a6675"))
    return Layout(WIDTH, round(legend_top + LEGEND), rules, bars, words)


def _spoken_ms(turns: Sequence[RttmTurn]) -> dict[str, int]:
    spoken: dict[str, int] = {}
    for turn in turns:
        spoken[turn.label] = spoken.get(turn.label, 0) + turn.end_ms - turn.start_ms
    return spoken


def _colours(labels: Sequence[str]) -> dict[str, str]:
    colours: dict[str, str] = {}
    for palette, some in (
        (NAMED, [label for label in labels if not is_stranger(label)]),
        (STRANGERS, [label for label in labels if is_stranger(label)]),
    ):
        colours |= {label: palette[number % len(palette)] for number, label in enumerate(some)}
    return colours


def _together(turns: Sequence[RttmTurn]) -> list[tuple[int, int]]:
    """When several people speak at once: (start, end) each, milliseconds."""
    edges = sorted(edge for turn in turns for edge in ((turn.start_ms, 1), (turn.end_ms, -1)))
    found: list[tuple[int, int]] = []
    speaking, since = 0, 0
    for at, change in edges:
        before, speaking = speaking, speaking + change
        if before < 2 <= speaking:
            since = at
        elif speaking < 2 <= before and at > since:
            found.append((since, at))
    return found


def _step_ms(duration_ms: int) -> int:
    if duration_ms < 5_000:
        return 500
    return 1000 * next((step for step in STEPS_S if duration_ms / 1000 / step <= TICKS_MAX), 8 * 3600)


def _clock(milliseconds: int, *, fine: bool = False) -> str:
    if fine:
        return f"{milliseconds / 1000:.1f} s"
    seconds = round(milliseconds / 1000)
    if seconds >= 3600:
        return f"{seconds // 3600}:{seconds // 60 % 60:02d}:{seconds % 60:02d}"
    return f"{seconds // 60}:{seconds % 60:02d}"


def _shortened(text: str, most: int) -> str:
    text = " ".join(text.split())
    return text if len(text) <= most else f"{text[: most - 1]}…"
