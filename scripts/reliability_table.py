"""Write the fault matrix into docs/reliability.md, with the figures of a run.

    SPEAKERD_FIGURES=run.jsonl python -m pytest -m fault        # deep ones too; any part of them will do
    python scripts/reliability_table.py run.jsonl

In: what tests of the matrix wrote down, of one run or several. What they say of a test takes the place of what was
known of it (tests/faults/recorded.json). Out: that file, and the table in the page. Without arguments only the table
is written. A failed test is shown as failed.
"""

from __future__ import annotations

import datetime
import json
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "reliability.md"
RECORDED = ROOT / "tests" / "faults" / "recorded.json"
BEGIN, END = "<!-- table: scripts/reliability_table.py -->", "<!-- end of table -->"

sys.path.insert(0, str(ROOT))
from tests.faults import matrix  # noqa: E402 - found beside this script's folder


def take(lines: list[dict[str, Any]], recorded: dict[str, Any], day: str) -> None:
    """Put a run's lines into what is recorded: `{test: {cell: {outcome, took_s, day, figures}}}`."""
    runs: dict[tuple[str, str], dict[str, list[dict[str, Any]]]] = defaultdict(lambda: defaultdict(list))
    ended: dict[tuple[str, str], dict[str, dict[str, Any]]] = defaultdict(dict)
    for line in lines:
        case, cell = line["test"], line["cell"]
        key = case.partition("[")[0], cell
        if "what" in line:
            runs[key][case].append(line)
            continue
        if line["outcome"] == "failed":
            # A second try measures anew.
            runs[key].pop(case, None)
        ended[key][case] = line
    for (test, cell), cases in ended.items():
        values: dict[tuple[str, str], list[float]] = defaultdict(list)
        for case in runs[test, cell].values():
            for line in case:
                values[line["what"], line["unit"]].append(line["value"])
        outcomes = {line["outcome"] for line in cases.values()}
        recorded.setdefault(test, {})[cell] = {
            "outcome": "failed" if "failed" in outcomes else "passed" if "passed" in outcomes else "skipped",
            "took_s": round(sum(line["took_s"] for line in cases.values()), 1),
            "day": day,
            "figures": [
                {"what": what, "unit": unit, "least": min(found), "most": max(found)}
                for (what, unit), found in values.items()
            ],
        }


def table(tests: list[matrix.Marked], recorded: dict[str, Any]) -> str:
    """The matrix as a table in Markdown: a row for each test, the cell named in its first."""
    lines = ["| | Fault | Promise | Test | Figure |", "|---|---|---|---|---|"]
    last = ""
    for one in tests:
        cell = matrix.CELLS[one.cell]
        first = one.cell != last
        last = one.cell
        path, _, name = one.test.partition("::")
        label = name.removeprefix("test_").replace("_", " ") + (" *(deep)*" if one.deep else "")
        fault = f"{cell.fault}: {cell.how}" if first else ""
        number = f"**{one.cell}**" if first else ""
        found = recorded.get(one.test, {}).get(one.cell)
        lines.append(f"| {number} | {fault} | {', '.join(one.promises)} | {label} (`{path}`) | {_figure(found)} |")
    return "\n".join(lines)


def page(text: str, tests: list[matrix.Marked], recorded: dict[str, Any]) -> str:
    """The page with its table written anew."""
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise SystemExit(f"{PAGE.name} has no place for the table: {BEGIN} … {END}")
    return f"{before}{BEGIN}\n\n{table(tests, recorded)}\n\n{END}{after}"


def _figure(found: dict[str, Any] | None) -> str:
    if found is None:
        return "not run yet"
    if found["outcome"] != "passed":
        return f"**{found['outcome']}** ({found['day']})"
    said = [
        f"{one['what']} {_span(one['least'], one['most'])}{' ' if one['unit'] else ''}{one['unit']}"
        for one in found["figures"]
    ]
    return "; ".join(said) or "holds"


def _span(least: float, most: float) -> str:
    return _number(least) if _number(least) == _number(most) else f"{_number(least)}–{_number(most)}"


def _number(value: float) -> str:
    return f"{value:,.0f}" if value == int(value) or value >= 100 else f"{value:.3g}"


def main(paths: list[Path]) -> None:
    recorded = json.loads(RECORDED.read_text()) if RECORDED.exists() else {}
    tests = matrix.marked(ROOT / "tests")
    for path in paths:
        day = datetime.datetime.fromtimestamp(path.stat().st_mtime, datetime.UTC).date().isoformat()
        take([json.loads(line) for line in path.read_text().splitlines()], recorded, day)
    known = {(one.test, one.cell) for one in tests}
    recorded = {
        test: kept
        for test, cells in sorted(recorded.items())
        if (kept := {cell: found for cell, found in sorted(cells.items()) if (test, cell) in known})
    }
    RECORDED.write_text(json.dumps(recorded, indent=1, ensure_ascii=False) + "\n")
    PAGE.write_text(page(PAGE.read_text(), tests, recorded))
    for one in tests:
        if recorded.get(one.test, {}).get(one.cell, {}).get("outcome") != "passed":
            print(f"{one.cell}: no run of {one.test} that passed")


if __name__ == "__main__":
    main([Path(argument) for argument in sys.argv[1:]])
