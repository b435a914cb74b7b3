"""Variational Bayes clustering (VBx without its Markov chain): soft assignment of features to speakers.

Pure NumPy and SciPy. In come features and a first assignment, out come responsibilities and how probable each speaker
is. What always holds: where the rows fit in one block, the same numbers as pyannote.audio 4.0.7; beyond that the same
up to rounding, in memory for the responsibilities and one block.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.special import logsumexp, softmax

Array = npt.NDArray[np.float64]
INIT_SMOOTHING = 7.0
ITERATIONS_MAX = 20
GAIN_MIN = 1e-4
BLOCK_ROWS = 16_384
PRIOR_FLOOR = 1e-8


@dataclass(frozen=True, slots=True)
class VbxParameters:
    """fa: what the evidence of an item counts, below 1 as overlapping windows say the same thing more than once.

    fb: how hard it is to be a speaker of one's own. threshold: Euclidean distance of unit centroids at which the first
    assignment stops merging.
    """

    threshold: float
    fa: float
    fb: float


def vbx(labels: npt.NDArray[np.int64], features: Array, phi: Array, parameters: VbxParameters) -> tuple[Array, Array]:
    """Responsibilities (N, S) and priors (S,) from first labels (N,) in 0..S-1 and features (N, D).

    phi: (D,) variance between speakers along each axis, in units of that within.
    """
    fa, fb = parameters.fa, parameters.fb
    num_items, num_axes = features.shape
    first = np.zeros((num_items, int(labels.max()) + 1))
    first[np.arange(num_items), labels] = 1.0
    gamma: Array = softmax(first * INIT_SMOOTHING, axis=1)
    del first
    prior = np.ones(gamma.shape[1]) / gamma.shape[1]
    constant = -0.5 * (np.sum(features**2, axis=1, keepdims=True) + num_axes * np.log(2 * np.pi))
    rho = features * np.sqrt(phi)
    bound_before = -np.inf
    for _ in range(ITERATIONS_MAX):
        variance = 1.0 / (1 + fa / fb * gamma.sum(axis=0, keepdims=True).T * phi)  # (S, D), of each speaker's mean
        mean = fa / fb * variance * gamma.T.dot(rho)  # (S, D)
        penalty = 0.5 * (variance + mean**2).dot(phi)  # (S,)
        log_prior = np.log(prior + PRIOR_FLOOR)
        likelihood = np.empty(num_items)
        for at in range(0, num_items, BLOCK_ROWS):
            rows = slice(at, at + BLOCK_ROWS)
            joint = fa * (rho[rows].dot(mean.T) - penalty + constant[rows])
            joint += log_prior
            likelihood[rows] = logsumexp(joint, axis=-1)
            gamma[rows] = np.exp(joint - likelihood[rows, None])
        prior = np.sum(gamma, axis=0)
        prior = prior / prior.sum()
        bound = np.sum(likelihood, axis=0) + fb * 0.5 * np.sum(np.log(variance) - variance - mean**2 + 1)
        if bound - bound_before < GAIN_MIN:
            break
        bound_before = bound
    return gamma, prior
