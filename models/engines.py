"""The engine of a bundle, whatever its family: the device that hears, and what makes turns of a recording's windows.

Importing this module does not import torch; opening a device does.
"""

from __future__ import annotations

from collections.abc import Callable

from models.bundle import AnyBundle, Bundle
from models.diarize import FileCollector, FileDiarization
from models.seams import AnalysisDevice, SlotKind
from runtime.errors import Unavailable

Collecting = Callable[[SlotKind], FileCollector]


def open_device(bundle: AnyBundle, device: str = "cpu") -> AnalysisDevice:
    """An engine for a bundle on a torch device ("cpu", "cuda", "cuda:1"). Unavailable if weights or device are not."""
    import torch

    if device.startswith("cuda") and not torch.cuda.is_available():
        raise Unavailable("no CUDA device is available to torch; use --device cpu, or install a driver")
    if isinstance(bundle, Bundle):
        from models.torch_device import TorchDevice

        return TorchDevice(bundle, device)
    from models.pyannote.device import PyannoteDevice

    return PyannoteDevice(bundle, device)


def collecting(bundle: AnyBundle, device: AnalysisDevice) -> Collecting:
    """What makes turns of a recording's windows, given the kind of slot that they were analysed in."""
    if isinstance(bundle, Bundle):
        evidence, confidence = bundle.clustering, bundle.confidence
        return lambda kind: FileDiarization(device.grid_of(kind), evidence, confidence)
    from models.pyannote.file import PyannoteFile

    return lambda kind: PyannoteFile(bundle)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a call of torch failed for want of memory: a smaller one may succeed, and the device is as it was."""
    import torch

    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "allocate memory" in str(error)
