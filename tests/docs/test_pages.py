"""What the pages of the documentation say of this repository is so: files, modules, commands and their options exist.

Links between pages, anchors included, are MkDocs' to check (test_site.py).
"""

from __future__ import annotations

import importlib.util
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from speakerd.cli import app

ROOT = Path(__file__).resolve().parent.parent.parent
PAGES = sorted([*(ROOT / "docs").rglob("*.md"), ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md"])
WRITTEN = [page for page in PAGES if page.parent.name != "reference"]
FOLDERS = "benchmarks|controlplane|deploy|docs|edge|models|node|proto|runtime|scripts|speakerd|tests"
PACKAGES = ("benchmarks", "controlplane", "edge", "models", "node", "runtime", "scripts", "tests")
FENCE = re.compile(r"^ *```.*?^ *```$", re.MULTILINE | re.DOTALL)
SPAN = re.compile(r"(?<!`)`([^`\n]+(?:\n[^`\n]+)?)`(?!`)")
A_PATH = re.compile(rf"(?<![\w/.~-])(?:{FOLDERS})/[\w./*<>{{}}-]+")
A_MODULE = re.compile(rf"(?:python -m )?((?:{'|'.join(PACKAGES)})(?:\.[a-z_]\w*){{2,}})")
# What a page may not tell: where it was written.
MACHINE = re.compile(
    r"(?<![\w.-])/(?:work|root|tmp/\w\d|opt/(?:py\w+|wheels))\b|pypi\.(?!org)\w+\.\w+|artifactory", re.IGNORECASE
)
# A word that the reader replaces, or that goes on elsewhere.
_OPEN = ("NAME", "…", "NNNN", "<", "{")
# What a reader makes.
_MADE = ("deploy/secrets", "deploy/air-gapped/brought")


def spans(text: str) -> Iterator[str]:
    """What stands between single backticks, outside of blocks."""
    for found in SPAN.findall(FENCE.sub("", text)):
        yield " ".join(found.split())


def there(path: str) -> bool:
    path = path.rstrip("./,:;")
    return bool(list(ROOT.glob(path))) if "*" in path else (ROOT / path).exists()


@pytest.mark.parametrize("page", WRITTEN, ids=lambda page: str(page.relative_to(ROOT)))
def test_files_and_modules_that_a_page_names_exist(page: Path) -> None:
    text = page.read_text()
    for span in spans(text):
        for path in A_PATH.findall(span):
            if not any(word in path for word in _OPEN) and not path.startswith(_MADE) and "//" not in span:
                assert there(path), f"{page.name}: `{span}`: there is no {path}"
        module = A_MODULE.fullmatch(span.split(" --")[0])
        # Values of the chart and events of logs have dots too: a module is what its second part is a file of.
        if module and there(module[1].replace(".", "/", 1).partition(".")[0] + ".py"):
            assert _importable(module[1]), f"{page.name}: there is no {module[1]}"
    for module_name in re.findall(r"python -m ((?:benchmarks|scripts|tests)[\w.]*)", text):
        assert _importable(module_name), f"{page.name}: there is no {module_name}"


def _importable(dotted: str) -> bool:
    """Whether it is a module of ours, or a name in one."""
    parts = dotted.split(".")
    for length in range(len(parts), 0, -1):
        path = ROOT.joinpath(*parts[:length])
        if path.with_suffix(".py").is_file():
            return (
                length == len(parts)
                or re.search(rf"\b{parts[length]}\b", path.with_suffix(".py").read_text()) is not None
            )
        if path.is_dir():
            return length == len(parts)
    return importlib.util.find_spec(parts[0]) is not None


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_a_page_does_not_tell_where_it_was_written(page: Path) -> None:
    found = MACHINE.search(page.read_text())
    assert found is None, f"{page.name}: {found and found[0]}"


@pytest.mark.parametrize("page", [page for page in PAGES if page.parent == ROOT], ids=lambda page: page.name)
def test_links_of_pages_outside_the_site_lead_somewhere(page: Path) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", FENCE.sub("", page.read_text())):
        path, _, anchor = link.partition("#")
        assert "//" not in link, f"{page.name}: {link} leaves the repository"
        assert (page.parent / path).exists(), f"{page.name}: there is no {path}"
        assert not anchor, f"{page.name}: {link}: nobody checks anchors here"


def commands_of(text: str) -> Iterator[list[str]]:
    """Each `speakerd …` that a page shows: in blocks a line (with what goes on in the next), in text a span."""
    blocks = "\n".join(FENCE.findall(text)) + "\n" + "\n".join(re.findall(r"^    (\S.*)$", text, re.MULTILINE))
    lines = re.sub(r"\\\n\s*", " ", blocks).splitlines()
    for line in [*lines, *spans(text)]:
        for piece in re.split(r"\s*(?:\||;|&&|\$\()\s*", line.partition(" #")[0]):
            try:
                words = shlex.split(piece.strip().rstrip(")…").strip(), comments=False)
            except ValueError:
                continue
            if words[:1] == ["speakerd"] and len(words) > 1:
                yield words[1:]


@pytest.mark.parametrize("page", WRITTEN, ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_that_a_page_shows_exist_with_their_options(page: Path) -> None:
    root: Any = typer.main.get_command(app)
    for words in commands_of(page.read_text()):
        command, context, names = root, typer.Context(root), ["speakerd"]
        rest = list(words)
        options = _options(root)
        while rest and hasattr(command, "get_command"):
            word = rest[0]
            if word.startswith("-"):
                rest = rest[1 + options.get(word, 0) :]
                continue
            if not re.fullmatch(r"[a-z][a-z-]*", word):
                break
            inner = command.get_command(context, word)
            assert inner is not None, f"{page.name}: `speakerd {' '.join(words)}`: {' '.join(names)} has no {word}"
            command, names, rest = inner, [*names, word], rest[1:]
            options |= _options(command)
        for word in rest:
            if word.startswith("--") and len(word) > 2:
                flag = word.partition("=")[0].rstrip("…,")
                assert flag in options, f"{page.name}: `speakerd {' '.join(words)}`: no option {flag}"


def _options(command: Any) -> dict[str, int]:
    """Each flag, and how many words follow it."""
    found = {
        flag: 0 if getattr(one, "is_flag", False) else 1
        for one in command.params
        for flag in (*one.opts, *one.secondary_opts)
    }
    return {"--help": 0, **found}
