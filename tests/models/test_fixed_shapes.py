"""Batches filled up to few sizes: the same results, and no other sizes."""

from __future__ import annotations

import pytest
import torch

from models.fixed_shapes import GPU_SIZES, FixedShapes
from models.seams import DueWindow
from models.torch_device import TorchDevice
from tests.models.builtin_engine import assert_same, bundle, conversation, engine


@pytest.mark.parametrize(("count", "size"), [(1, 1), (3, 4), (33, 64), (64, 64), (65, 128), (130, 192)])
def test_a_batch_is_filled_up_to_the_next_size_and_beyond_the_largest_to_a_multiple(count: int, size: int) -> None:
    shapes, seen = FixedShapes(GPU_SIZES), []

    def work(batch: torch.Tensor) -> torch.Tensor:
        seen.append(len(batch))
        assert not batch[count:].any()
        return batch.sum(dim=1, keepdim=True)

    batch = torch.rand(count, 5)
    assert torch.equal(shapes.run(work, batch), batch.sum(dim=1, keepdim=True))
    assert seen == [size] and shapes.seen == {size}


def test_as_they_come_nothing_is_filled_up() -> None:
    shapes = FixedShapes((1,))
    assert [shapes.size_for(count) for count in (1, 3, 70)] == [1, 3, 70]


def test_streams_in_batches_that_are_filled_up_hear_what_they_hear_alone() -> None:
    sound, alone = conversation()[100_000:228_000], engine()
    padded = TorchDevice(bundle(), "cpu", batch_sizes=(4, 16))
    ends = [DueWindow(slot, len(sound)) for slot in (0, 1, 2)]
    for device in (alone, padded):
        for slot in (0, 1, 2):
            device.open(slot, len(sound))
            device.write(slot, sound if slot != 1 else 0.5 * sound[::-1].copy())
    together = padded.analyze(ends)
    assert_same([alone.analyze([window])[0] for window in ends], together)
    assert padded._shapes.seen <= {4, 16, 32, 48, 64, 80, 96, 112, 128, 144, 160, 176, 192, 208, 224, 240, 256}
