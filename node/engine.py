"""What a node needs to hear with: a device, a gallery, and the parameters that decide results.

In: the names of a bundle and a device. Out: an Engine. What always holds: torch is imported only for engines that need
it, on the thread that loads them, which is the one that will own the device.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from models.diarize import FileCollector
from models.naming import NamingParameters
from models.online import OnlineParams
from models.seams import AnalysisDevice, DueWindow, Gallery, SlotKind
from runtime.errors import InvalidRequest

NULL_BUNDLE = "null@"
PROBE_SLOT = -2
"""A ring of its own, with which the device is warmed, and asked whether it still answers."""


def free_host_bytes() -> int:
    """Memory that this process could still take: of the machine, or of its control group where that has less."""
    free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    meminfo, group = Path("/proc/meminfo"), Path("/sys/fs/cgroup")
    if meminfo.exists():
        # What is cached counts as free.
        free = next(
            int(line.split()[1]) << 10 for line in meminfo.read_text().splitlines() if line.startswith("MemAvailable")
        )
    limit, current = group / "memory.max", group / "memory.current"
    if limit.exists() and (most := limit.read_text().strip()).isdigit():
        free = min(free, int(most) - int(current.read_text()))
    return max(0, free)


def total_host_bytes() -> int:
    """Memory that there is in all: of the machine, or of this process's control group where that has less."""
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    limit = Path("/sys/fs/cgroup/memory.max")
    if limit.exists() and (most := limit.read_text().strip()).isdigit():
        total = min(total, int(most))
    return total


@dataclass(frozen=True, slots=True)
class Engine:
    """A loaded engine.

    model: "<embedding id>@<revision>", to which voiceprints belong. collector: what makes turns of a recording's
    windows, given what kind of slot they are of. windows_a_batch: the largest batch. free_bytes: memory that is free
    where the device has its rings; total_bytes: all that there is of it. is_out_of_memory: whether a call failed for
    want of memory, so that a smaller one may succeed.
    """

    device: AnalysisDevice
    gallery: Gallery
    bundle: str
    model: str
    device_name: str
    online: OnlineParams
    naming: NamingParameters
    collector: Callable[[SlotKind], FileCollector]
    windows_a_batch: int = 32
    free_bytes: Callable[[], int] = free_host_bytes
    total_bytes: Callable[[], int] = total_host_bytes
    is_out_of_memory: Callable[[BaseException], bool] = lambda error: isinstance(error, MemoryError)


def engine_loader(bundle: str, device: str, calibration: Path | None = None) -> Callable[[], Engine]:
    """What loads the engine named, when called on the device's thread. calibration: of `speakerd calibrate`."""
    return (lambda: _load_null(bundle)) if device == "null" else lambda: _load_torch(bundle, device, calibration)


def probe(device: AnalysisDevice) -> None:
    """Analyse a window of silence: compiles and allocates on a new device, and raises on one that is lost."""
    grid = device.grid
    device.open(PROBE_SLOT, grid.window_samples)
    device.write(PROBE_SLOT, np.zeros(grid.window_samples, np.float32))
    device.analyze([DueWindow(PROBE_SLOT, grid.window_samples)])


def _load_null(bundle: str) -> Engine:
    """A bundle called `null@N` is another model than `null@M`: what one makes of a voice means nothing to the other."""
    from node.null_engine import CLUSTERING, NAMING, NullDevice, NullGallery, collector

    revision = bundle.removeprefix(NULL_BUNDLE) if bundle.startswith(NULL_BUNDLE) else "1"
    if not revision.isdigit():
        raise InvalidRequest(f"bundle {bundle!r}: with the device null, write {NULL_BUNDLE}NUMBER or leave it out")
    device = NullDevice(int(revision))
    return Engine(
        device=device,
        gallery=NullGallery(device.grid.embedding_dim),
        bundle="null",
        model=f"{NULL_BUNDLE}{revision}",
        device_name="null",
        online=OnlineParams(evidence=CLUSTERING),
        naming=NAMING,
        collector=collector,
    )


def _load_torch(bundle_name: str, device_name: str, calibration: Path | None) -> Engine:
    import torch

    from models.bundle import load_bundle
    from models.calibration_file import with_calibration
    from models.engines import collecting, is_out_of_memory, open_device
    from models.torch_gallery import TorchGallery

    if device_name == "cpu":
        # Small batches of small networks: more threads cost more in hand-overs than they bring.
        torch.set_num_threads(1)
    bundle = load_bundle(bundle_name)
    if calibration is not None:
        bundle = with_calibration(bundle, calibration)
    device = open_device(bundle, device_name)
    on_gpu = device_name.startswith("cuda")
    return Engine(
        device=device,
        gallery=TorchGallery(bundle.grid.embedding_dim, device_name),
        bundle=bundle.id,
        model=f"{bundle.model_id}@{bundle.model_revision}",
        device_name="cuda:0" if device_name == "cuda" else device_name,
        online=bundle.online,
        naming=bundle.naming,
        collector=collecting(bundle, device),
        windows_a_batch=256 if on_gpu else 32,
        free_bytes=(lambda: int(torch.cuda.mem_get_info(device_name)[0])) if on_gpu else free_host_bytes,
        total_bytes=(lambda: int(torch.cuda.mem_get_info(device_name)[1])) if on_gpu else total_host_bytes,
        is_out_of_memory=is_out_of_memory,
    )
