"""Whom a new voice is too close to: the nearest voice in scope, with the probability that it is the same.

In: what was heard in an enrolment. Out: a voice id and a probability, or None where nobody is in scope. What always
holds: voices of other tenants, or out of scope, are not looked at.
"""

from __future__ import annotations

import numpy as np

from models.naming import NamingParameters, match_probabilities
from models.seams import VoiceSample
from node.naming import candidates_of
from node.voice_store import VoiceStore


async def nearest_voice(
    store: VoiceStore,
    audiences: tuple[str, ...],
    sample: VoiceSample,
    naming: NamingParameters,
    *,
    except_voice_id: str = "",
) -> tuple[str, float] | None:
    """The likeliest voice to be that of a sample, but for one."""
    roster = store.candidates(audiences)
    others = frozenset(roster.generations) - {except_voice_id}
    if not others:
        return None
    if len(others) < len(roster):
        roster = store.candidates(audiences, others)
    cosines, roster = await store.scores(sample.embedding[None], roster)
    if not len(roster):
        return None
    probabilities = match_probabilities(
        candidates_of(cosines, roster), np.array([sample.net_speech_samples]), naming
    )  # (1, V)
    best = int(np.argmax(probabilities[0]))
    return roster.voices[best].voice_id, float(probabilities[0, best])
