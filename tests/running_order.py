"""In which order files of tests are run, where several processes take one after another.

Those that take longest begin, so that no process has one of them left when the others are done; and files whose tests
mostly wait, for leases to end and for daemons to start, take turns with those that compute, so that the processes
neither all wait nor all compute. A file that is not named here follows in its folder's turn. Any order is right: this
one is quick.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import chain, zip_longest

WAITING = ("contract", "controlplane", "faults", "interop", "operations", "runtime")
"""Folders whose tests mostly wait."""
LONGEST = (
    "faults/test_continuity.py",
    "docs/test_quick_start.py",
    "controlplane/test_erasure.py",
    "edge/test_pyannoteai_sdk.py",
    "faults/test_clocks.py",
    "speakerd/test_up.py",
    "faults/test_partitions.py",
    "models/pyannote/test_parity.py",
    "controlplane/test_audit.py",
    "models/pyannote/test_import.py",
    "controlplane/test_backup.py",
    "edge/test_published_openapi.py",
    "operations/test_doctor.py",
    "edge/test_frame.py",
    "controlplane/test_fleet.py",
    "edge/test_loccus.py",
    "faults/test_redis.py",
    "edge/test_scaispeak.py",
    "faults/test_fault_points.py",
    "docs/test_scaigrid_pages.py",
    "controlplane/test_fleet_processes.py",
    "leaks/test_leaks.py",
    "controlplane/test_job_processes.py",
    "docs/test_scryon_and_loccus.py",
    "faults/test_live_websocket.py",
    "edge/test_isolation_over_http.py",
    "operations/test_running_fleet.py",
    "models/pyannote/test_node.py",
    "controlplane/test_jobs.py",
    "machines/test_fleet_machine.py",
    "controlplane/test_daemon.py",
    "edge/test_scaiecho_stream.py",
    "faults/test_database.py",
    "machines/test_voices_machine.py",
    "faults/test_crowds.py",
    "simulator/test_simulator.py",
    "faults/test_poison.py",
    "node/test_real_engine.py",
    "faults/test_tls_fleet.py",
    "models/test_calibration.py",
    "controlplane/test_erasure_journal.py",
    "node/test_enrolment_checks.py",
    "faults/test_node_fault_points.py",
    "models/test_confidence.py",
    "controlplane/test_reconciler.py",
    "node/test_many_streams.py",
    "interop/test_javascript_client.py",
    "edge/test_scaiecho.py",
)
"""What takes ten seconds and more, the longest first, waiting and computing by turns."""


DEEP = (
    "node/test_long_stream.py",
    "faults/test_nemesis.py",
    "accuracy/test_simulated_conversations.py",
    "models/pyannote/test_parity.py",
    "fuzz/test_fuzz.py",
    "mutations/test_mutations.py",
    "simulator/test_simulator.py",
    "deploy/test_images.py",
    "edge/test_published_openapi.py",
    "models/test_long_files.py",
    "node/test_many_streams.py",
    "controlplane/test_isolation.py",
    "faults/test_fault_points.py",
    "faults/test_poison.py",
    "faults/test_node_fault_points.py",
    "machines/test_voices_machine.py",
    "machines/test_jobs_machine.py",
    "faults/test_rolling_restarts.py",
    "machines/test_fleet_machine.py",
    "faults/test_live_websocket.py",
    "models/test_online.py",
    "controlplane/test_jobs_heard.py",
    "docs/test_quick_start.py",
)
"""Of `make check-deep`, what takes minutes, the longest first."""


def in_order(files: Iterable[str], *, are_deep: bool = False) -> list[str]:
    """Files of tests, named from tests/ on, in the order in which they are begun."""
    named = dict.fromkeys(files)
    longest = DEEP if are_deep else LONGEST
    long = [file for file in longest if file in named]
    rest = [file for file in named if file not in longest]
    waiting = [file for file in rest if file.partition("/")[0] in WAITING]
    computing = [file for file in rest if file.partition("/")[0] not in WAITING]
    turns = chain.from_iterable(zip_longest(waiting, computing))
    return [*long, *(file for file in turns if file is not None)]
