"""The use cases of people and their voices, built together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from controlplane.administration import Administration
from controlplane.agreement_reading import AgreementReading
from controlplane.blobs import Blobs
from controlplane.chores import Chore, Chores
from controlplane.completion import Completion
from controlplane.config import ControlPlaneSettings
from controlplane.daily_keys import CheckpointKeys
from controlplane.database.engine import Database
from controlplane.decisions import Decisions
from controlplane.enrolment import Enrolment
from controlplane.erasure import Erasures
from controlplane.export import Export
from controlplane.identity import Identity
from controlplane.kek import KekSource
from controlplane.kek_rotation import KekRotation
from controlplane.keys import KeyRing
from controlplane.promotion import Promotion
from controlplane.relay import Relay
from controlplane.repromotion import Repromotion
from controlplane.tenant_keys import TenantKeys
from controlplane.upkeep import Upkeep
from controlplane.usage import Usage
from controlplane.voice_changes import VoiceChanges
from controlplane.voices import Voices
from runtime.clock import Clock
from runtime.speaker_token import SpeakerSeal

UNWRITTEN_S = 5.0
"""How soon a decision that the erasure journal could not take is tried again."""


@dataclass(frozen=True, slots=True)
class People:
    """All of them."""

    library: Voices
    enrolment: Enrolment
    changes: VoiceChanges
    repromotion: Repromotion
    agreements: AgreementReading
    promotion: Promotion
    export: Export
    usage: Usage
    erasures: Erasures
    relay: Relay
    administration: Administration
    rotation: KekRotation
    chores: Chores


@dataclass(frozen=True, slots=True)
class Ground:
    """What they stand on."""

    settings: ControlPlaneSettings
    database: Database
    keys: KeyRing
    kek: KekSource
    tenant_keys: TenantKeys
    blobs: Blobs
    identity: Identity
    clock: Clock
    fleet_key: str


def build_people(
    ground: Ground,
    *,
    library: Voices,
    enrolment: Enrolment,
    erasures: Erasures,
    decisions: Decisions,
    relay: Relay,
    completion: Completion,
    more_chores: Sequence[Chore] = (),
) -> People:
    """Build what is not built yet."""
    database, keys, clock = ground.database, ground.keys, ground.clock
    upkeep = Upkeep(
        database=database,
        keys=keys,
        blobs=ground.blobs,
        erasures=erasures,
        settings=ground.settings,
        clock=clock,
    )
    return People(
        library=library,
        enrolment=enrolment,
        changes=VoiceChanges(
            database=database,
            keys=keys,
            tenant_keys=ground.tenant_keys,
            library=library,
            clock=clock,
            decisions=decisions,
        ),
        repromotion=Repromotion(database=database, keys=keys, library=library, completion=completion, clock=clock),
        agreements=AgreementReading(database, keys),
        promotion=Promotion(
            enrolment,
            SpeakerSeal(ground.fleet_key, clock, others=CheckpointKeys(ground.fleet_key.encode(), clock).current),
        ),
        export=Export(database=database, keys=keys, blobs=ground.blobs, library=library, clock=clock),
        usage=Usage(database, keys, clock),
        erasures=erasures,
        relay=relay,
        administration=Administration(
            database=database, tenant_keys=ground.tenant_keys, erasures=erasures, clock=clock, decisions=decisions
        ),
        rotation=KekRotation(database=database, keys=keys, source=ground.kek, clock=clock),
        chores=Chores(
            database,
            clock,
            (
                *upkeep.chores(ground.identity),
                Chore("journal.decisions", UNWRITTEN_S, decisions.catch_up, by_all=True),
                *more_chores,
            ),
        ),
    )
