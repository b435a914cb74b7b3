"""Pictures of who spoke when: SVG with the standard library alone, PNG with Pillow (the extra `picture`).

In come turns, a duration and a title; out come files that appear whole or not at all. Nothing of a name can break out
of the SVG: every text is escaped.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

from speakerd.errors import SpeakerdError
from speakerd.rttm import RttmTurn, write_whole, write_whole_bytes
from speakerd.timeline_layout import Layout, Words, lay_out

FONTS = "'DejaVu Sans', 'Segoe UI', 'Helvetica Neue', Arial, sans-serif"
FONT_FILES = ("DejaVuSans.ttf", "DejaVuSans-Bold.ttf")
PNG_SCALE = 2
"""Pixels of a PNG for each of the layout's, so that it is sharp on fine screens and on paper."""


def write_svg(path: Path, turns: Sequence[RttmTurn], *, duration_ms: int, title: str) -> None:
    """Write the picture as SVG."""
    write_whole(path, svg_text(lay_out(turns, duration_ms, title), title))


def write_png(path: Path, turns: Sequence[RttmTurn], *, duration_ms: int, title: str) -> None:
    """Write the picture as PNG. Raises SpeakerdError, saying what to install, where Pillow is not."""
    write_whole_bytes(path, png_bytes(lay_out(turns, duration_ms, title)))


def svg_text(layout: Layout, title: str) -> str:
    """The file."""
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {layout.width} {layout.height}" '
        f'width="{layout.width}" height="{layout.height}" font-family="{FONTS}" role="img">',
        f"<title>{_xml(title)}</title>",
        '<defs><pattern id="stripes" width="6" height="6" patternUnits="userSpaceOnUse" patternTransform="rotate(45)">'
        '<rect width="2" height="6" fill="#ffffff" fill-opacity="0.55"/></pattern></defs>',
        f'<rect width="{layout.width}" height="{layout.height}" fill="#ffffff"/>',
    ]
    parts += [
        f'<line x1="{rule.x1:.1f}" y1="{rule.y1:.1f}" x2="{rule.x2:.1f}" y2="{rule.y2:.1f}" stroke="{rule.colour}"/>'
        for rule in layout.rules
    ]
    for bar in layout.bars:
        place = f'x="{bar.left:.2f}" y="{bar.top:.1f}" width="{bar.width:.2f}" height="{bar.height:.1f}" rx="2"'
        parts.append(f'<rect {place} fill="{bar.colour}"/>')
        if bar.is_stranger:
            parts.append(f'<rect {place} fill="url(#stripes)"/>')
    for words in layout.words:
        weight = ' font-weight="600"' if words.is_bold else ""
        parts.append(
            f'<text x="{words.x:.1f}" y="{words.y:.1f}" font-size="{words.size}" fill="{words.colour}" '
            f'text-anchor="{words.anchor}"{weight}>{_xml(words.text)}</text>'
        )
    return "\n".join([*parts, "</svg>", ""])


def png_bytes(layout: Layout) -> bytes:
    """The file. Raises SpeakerdError where Pillow is not installed."""
    try:
        from PIL import Image, ImageDraw
    except ImportError:
        raise SpeakerdError(
            "unavailable", "a picture as PNG needs Pillow: pip install 'speakerd[picture]', or write --format svg"
        ) from None
    size = (layout.width * PNG_SCALE, layout.height * PNG_SCALE)
    image = Image.new("RGB", size, "#ffffff")
    draw = ImageDraw.Draw(image)
    for rule in layout.rules:
        draw.line([part * PNG_SCALE for part in (rule.x1, rule.y1, rule.x2, rule.y2)], rule.colour, PNG_SCALE)
    for bar in layout.bars:
        left, top = bar.left * PNG_SCALE, bar.top * PNG_SCALE
        right, bottom = left + bar.width * PNG_SCALE - 1, top + bar.height * PNG_SCALE - 1
        right = max(left, right)
        draw.rounded_rectangle((left, top, right, bottom), radius=min(4.0, (right - left) / 2), fill=bar.colour)
        if bar.is_stranger:
            _stripe(draw, left, top, right, bottom)
    fonts: dict[tuple[int, bool], Any] = {}
    for words in layout.words:
        font = fonts.setdefault((words.size, words.is_bold), _font(words))
        draw.text((words.x * PNG_SCALE, words.y * PNG_SCALE), _drawable(words.text), words.colour, font,
                  anchor={"start": "ls", "middle": "ms", "end": "rs"}[words.anchor])  # fmt: skip
    written = io.BytesIO()
    image.save(written, "PNG", optimize=True)
    return written.getvalue()


def _stripe(draw: Any, left: float, top: float, right: float, bottom: float) -> None:
    # As the SVG's pattern: slanted lines, clipped to the bar by computing where they leave it.
    height = bottom - top
    at = left - height
    while at < right:
        begin, end = max(at, left), min(at + height, right)
        if begin < end:
            draw.line((begin, bottom - (begin - at), end, bottom - (end - at)), "#d5d9de", 3)
        at += 6 * PNG_SCALE


def _font(words: Words) -> Any:
    from PIL import ImageFont

    for folder in ("", *_font_folders()):
        try:
            return ImageFont.truetype(f"{folder}{FONT_FILES[words.is_bold]}", words.size * PNG_SCALE)
        except OSError:
            continue
    return ImageFont.load_default(words.size * PNG_SCALE)


def _font_folders() -> list[str]:
    """Where matplotlib, which the engine brings, keeps the same font."""
    from importlib.util import find_spec

    found = find_spec("matplotlib")
    return [] if found is None or found.origin is None else [f"{Path(found.origin).parent}/mpl-data/fonts/ttf/"]


def _xml(text: str) -> str:
    return escape("".join(character for character in text if character.isprintable()))


def _drawable(text: str) -> str:
    return "".join(character for character in text if character.isprintable())
