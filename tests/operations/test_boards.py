"""Boards: each is what Grafana reads, in the order of an operator's questions, over metrics that there are."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from scripts.generate_metrics_reference import descriptions
from tests.operations.prometheus_tools import BOARDS, names_in, panels

ORDER = ["Overview", "Quality of service", "Warmth", "Device", "Control plane", "Compliance"]


@pytest.mark.parametrize("path", BOARDS, ids=lambda path: path.stem)
def test_a_board_has_an_id_rows_and_panels_that_lie_side_by_side(path: Path) -> None:
    board = json.loads(path.read_text())
    assert board["uid"] == path.stem and board["title"] and board["schemaVersion"] >= 36
    ids = [panel["id"] for panel in board["panels"]]
    assert len(ids) == len(set(ids))
    taken: set[tuple[int, int]] = set()
    for panel in board["panels"]:
        at = panel["gridPos"]
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert at["x"] + at["w"] <= 24 and not cells & taken, panel["title"]
        taken |= cells
        assert panel["type"] == "row" or panel["targets"]


def test_the_board_of_the_fleet_goes_from_how_it_is_to_what_has_to_be_proven() -> None:
    (fleet,) = (json.loads(path.read_text()) for path in BOARDS if path.stem == "speakerd-fleet")
    assert [panel["title"] for panel in fleet["panels"] if panel["type"] == "row"] == ORDER


def test_panels_ask_for_metrics_that_there_are_and_show_most_of_them() -> None:
    known = {one.name for one in descriptions()}
    asked = {name for _, expression in panels() for name in names_in(expression)}
    assert asked <= known, asked - known
    # Numbers of the log and of nodes' lives: of use beside the metrics of how far behind somebody is.
    unseen = {"node_applied_revision", "node_incarnation", "cp_head_revision"}
    assert known - asked == {f"speakerd_{name}" for name in unseen}
