"""Whether diart's environment and ours compute the same from one checkpoint: a measurement of two engines is only one
if both carry the same networks.

    python -m benchmarks.diart_agreement FORWARD.npz --checkpoint DIR

FORWARD.npz is what `benchmarks/diart_peer.py --forward` wrote. Prints the greatest differences, and fails over 1e-3.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch

from models.bundle import load_bundle
from models.pyannote.bundle import PyannoteBundle
from models.pyannote.embedding import MelFrames, Pooling, Trunk, centred
from models.pyannote.networks import build_embedding, build_segmentation

DIFFERENCE_MAX = 1e-3


def main() -> None:
    """Compare, print, and fail where they differ."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("forward", type=Path)
    parser.add_argument("--checkpoint", type=Path, required=True)
    given = parser.parse_args()
    theirs = np.load(given.forward)
    classes, embedding = _ours(given.checkpoint / "bundle-VBxClustering", theirs["window"])
    probabilities = float(np.abs(np.exp(classes) - np.exp(theirs["classes"])).max())
    vectors = float(np.abs(embedding - theirs["embedding"]).max() / np.abs(theirs["embedding"]).max())
    print(f"probabilities of local speakers differ by {probabilities:.1e} at most, embeddings by {vectors:.1e}")
    if max(probabilities, vectors) > DIFFERENCE_MAX:
        raise SystemExit("they do not carry the same networks")


@torch.inference_mode()
def _ours(bundle_folder: Path, window: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Log probabilities (F, K), and the embedding (D,) of the last two thirds, with the parts that our engine runs."""
    bundle = load_bundle(str(bundle_folder))
    assert isinstance(bundle, PyannoteBundle)
    sound = torch.from_numpy(window)
    classes = build_segmentation(bundle)(sound[None, None])[0]
    network = build_embedding(bundle)
    mels = MelFrames(network)(sound)
    frames = Trunk(network.resnet)(centred(mels[None])).flatten(1, 2)
    mask = torch.ones(1, 1, len(classes))
    mask[:, :, : len(classes) // 3] = 0.0
    return classes.numpy(), Pooling(network.resnet)(frames, mask)[0, 0].numpy()


if __name__ == "__main__":
    main()
