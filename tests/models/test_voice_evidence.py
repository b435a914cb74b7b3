"""Whether speech is of somebody heard before, as log odds: little evidence says little."""

from __future__ import annotations

import numpy as np

from models.voice_evidence import VoiceEvidence, worthwhile_changes
from tests.models.test_online import EVIDENCE, voice_of


def evidence_of(person: int, seconds: float, hoarseness: float = 0.0) -> VoiceEvidence:
    voice = voice_of(person) + hoarseness * voice_of(99)
    unit = (voice / np.linalg.norm(voice)).astype(np.float32)[None]
    return VoiceEvidence.of(unit, np.array([seconds], np.float32), EVIDENCE)


def odds(one: VoiceEvidence, other: VoiceEvidence) -> float:
    return float(one.odds(other, EVIDENCE)[0, 0])


def test_the_same_voice_is_likelier_one_person_and_another_voice_two() -> None:
    assert odds(evidence_of(0, 4.0), evidence_of(0, 10.0, hoarseness=0.3)) > 1.0
    assert odds(evidence_of(0, 4.0), evidence_of(1, 10.0)) < -1.0


def test_the_more_is_heard_the_surer_and_nothing_heard_says_nothing() -> None:
    for person in (0, 1):
        sure = [abs(odds(evidence_of(0, seconds), evidence_of(person, 10.0))) for seconds in (0.0, 0.5, 2.0, 8.0)]
        assert sure == sorted(sure)
        assert sure[0] < 1e-9
    assert abs(odds(evidence_of(0, 4.0), evidence_of(1, 0.0))) < 1e-9


def test_an_hour_of_one_voice_is_no_surer_than_the_bound_on_evidence() -> None:
    bounded = evidence_of(0, 3_600.0).bounded(5.0)
    assert bounded.counts.tolist() == [5.0]
    assert np.allclose(bounded.sums[0], 5.0 * voice_of(0), atol=1e-5)
    assert np.allclose(evidence_of(0, 2.0).bounded(5.0).sums, evidence_of(0, 2.0).sums)


def test_what_is_known_of_one_person_adds_up_whoever_said_it_first() -> None:
    three = VoiceEvidence.of(
        np.stack([voice_of(0), voice_of(1), voice_of(0)]), np.array([1, 2, 3], np.float32), EVIDENCE
    )
    together = three.gathered(np.array([[True, False, True], [False, True, False]]))
    assert np.allclose(together.counts, np.array([4.0, 2.0]) * EVIDENCE.evidence_per_second)
    doubled = together + together
    assert np.allclose(doubled.sums, 2 * together.sums)


def test_who_was_told_stays_where_a_change_explains_no_more_and_gives_way_where_it_does() -> None:
    persons = np.array([0, 0, 1, 1, 2, 2, 3])
    embeddings = np.stack([voice_of(int(person)) for person in persons])
    heard = VoiceEvidence.of(embeddings, np.full(7, 4.0, np.float32), EVIDENCE)

    def groups(taken: list[int], clusters: list[int], change_odds: float = 4.0) -> list[int]:
        found = worthwhile_changes(np.array(taken), np.array(clusters), heard, EVIDENCE, change_odds)
        return np.unique(found, return_inverse=True)[1].tolist()

    # 0 and 1 were taken for one; that 2 is two people is nothing that is heard, and 3 is as it was.
    changed = groups([0, 0, 0, 0, 1, 1, 2], [5, 5, 6, 6, 7, 8, 9])
    assert changed[0] == changed[1] != changed[2] == changed[3]
    assert changed[4] == changed[5]
    assert len(set(changed)) == 4
    assert len(set(groups([0, 0, 0, 0, 1, 1, 2], [5, 5, 6, 6, 7, 8, 9], change_odds=1e9))) == 3
