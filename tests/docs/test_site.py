"""The documentation as a site: it builds with warnings as errors, has every page in its nav, and fetches nothing.

Links between pages, anchors included, are checked by the build itself; links that leave the site are only listed here,
so that a new one is seen.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
ELSEWHERE: set[str] = set()
"""Pages of others that ours link to."""

# Attributes that make a browser fetch as a page is shown.
FETCHED = {
    "script": "src",
    "img": "src",
    "link": "href",
    "iframe": "src",
    "source": "src",
    "video": "src",
    "audio": "src",
}


class _Page(HTMLParser):
    """What a page fetches, and where it links to."""

    def __init__(self) -> None:
        super().__init__()
        self.fetched: set[str] = set()
        self.linked: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        said = dict(attrs)
        if tag == "a":
            self.linked.add(said.get("href") or "")
        elif tag in FETCHED and said.get("rel") != "canonical":
            self.fetched.add(said.get(FETCHED[tag]) or "")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    built = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)],
        cwd=ROOT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        timeout=170,
        check=False,
    )
    complaints = [line for line in built.stderr.splitlines() if line.startswith(("WARNING", "ERROR", "Aborted"))]
    assert built.returncode == 0, "\n".join(complaints)
    return folder


def test_every_page_is_built_and_in_the_nav(site: Path) -> None:
    pages = {path.relative_to(ROOT / "docs") for path in (ROOT / "docs").rglob("*.md")}
    first = (site / "index.html").read_text()
    for page in pages:
        place = page.parent if page.name == "index.md" else page.with_suffix("")
        assert (site / place / "index.html").is_file(), page
        if str(place) != ".":
            assert re.search(rf'href="{re.escape(str(place))}/"', first), f"{page} is not in the nav of mkdocs.yml"


def test_every_block_of_code_is_drawn_as_one(site: Path) -> None:
    for file in site.rglob("*.html"):
        assert "```" not in file.read_text(), file


def test_the_site_fetches_nothing_from_elsewhere_and_links_only_to_what_is_listed(site: Path) -> None:
    found: set[str] = set()
    for file in site.rglob("*.html"):
        page = _Page()
        page.feed(file.read_text())
        assert not {url for url in page.fetched if re.match(r"(https?:)?//", url)}, file
        found |= {url for url in page.linked if re.match(r"(https?:)?//", url)}
    assert found == ELSEWHERE
