"""What may change of a voice besides its recordings: what is said of it, for whom it is, and whether it may be used.

In: a caller and a voice. Out: the voice as it is then. What always holds: each change is one transaction with its
place in the fleet log, its consent row or event and its audit row; the generation grows with it, so that no node keeps
the old label or audience; a voice whose consent was withdrawn is held by nobody once nodes have applied it, which is
waited for as with an erasure.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sqlalchemy.ext.asyncio import AsyncConnection

from controlplane.agreements import Consent, Dated, Event, Signed, keep_consent, note, require_not_opted_out, subject_of
from controlplane.database.engine import Database, locked_head
from controlplane.decisions import Decisions, withdrawn_of
from controlplane.enrolment_request import Details, details_text, require_consent, require_details, require_label
from controlplane.journal_records import Decision, OptedOut, Withdrawn
from controlplane.keys import KeyRing, VoiceAddress
from controlplane.policy import Principal, Right, VoiceScope, decide
from controlplane.tenant_keys import TenantKeys
from controlplane.voice_generation import FREEZES, FROZEN, At, Held, advance, held
from controlplane.voice_lookup import NO_SUCH_VOICE, facts_of, find_voice, require
from controlplane.voices import Voice, Voices
from runtime.clock import Clock
from runtime.errors import Conflict, NotFound


class VoiceChanges:
    """The use cases."""

    def __init__(
        self,
        *,
        database: Database,
        keys: KeyRing,
        tenant_keys: TenantKeys,
        library: Voices,
        clock: Clock,
        decisions: Decisions,
    ) -> None:
        self._database = database
        self._keys = keys
        self._tenant_keys = tenant_keys
        self._library = library
        self._clock = clock
        self._decisions = decisions

    def __repr__(self) -> str:
        return "VoiceChanges()"

    async def update(self, principal: Principal, voice_id: str, *, label: str | None, details: Details | None) -> Voice:
        """Change label or details; None leaves them. Raises NotFound, Denied, Conflict, InvalidRequest."""
        if label is not None:
            require_label(label)
        if details is not None:
            require_details(details)
        async with self._database.write() as connection:
            voice, now = await self._locked(connection, principal, voice_id, Right.CHANGE)
            values: dict[str, Any] = {}
            if label is not None:
                values["label_ciphertext"] = now.key.encrypt(label.encode(), "label")
                values["label_index"] = await self._tenant_keys.label_index(connection, voice.tenant_id, label)
            if details is not None:
                values["language"], values["gender"] = details.language, details.gender
                values["details_ciphertext"] = now.key.encrypt(details_text(details).encode(), "details")
            await self._advance(connection, principal, now, "voice.updated", values)
        return await self._told(voice)

    async def share(self, principal: Principal, voice_id: str) -> Voice:
        """Give a user's voice to the tenant. Raises NotFound, Denied, Conflict."""
        async with self._database.write() as connection:
            voice, now = await self._locked(connection, principal, voice_id, Right.SHARE)
            if now.row.scope == VoiceScope.GLOBAL.value:
                raise Conflict("the voice is global: everybody has it")
            if now.row.scope == VoiceScope.TENANT.value:
                return await self._library.get(voice)
            await self._advance(connection, principal, now, "voice.shared", {"scope": VoiceScope.TENANT.value})
        return await self._told(voice)

    async def withdraw(self, principal: Principal, voice_id: str, *, opt_out: bool) -> Voice:
        """Take consent back: nothing names the voice from now on. Repeating it changes nothing, save for an opt-out.

        Raises NotFound, Denied, Conflict when the person was never named (`subject`) and opts out.
        """
        decided: list[Decision] = []
        async with self._database.write() as connection:
            voice, now = await self._locked(connection, principal, voice_id, Right.CHANGE)
            signed = Signed(principal.key_id, self._clock.wall_s())
            subject = await subject_of(connection, voice)
            if opt_out:
                if subject is None:
                    raise Conflict("the voice was enrolled without `subject`, so that the person cannot be told again")
                await note(connection, Event.OPTED_OUT, voice, now.generation, signed=signed, subject_index=subject)
                decided.append(OptedOut(voice.tenant_id, subject.hex(), signed.at_s, signed.key_id))
            if now.row.state == FROZEN:
                # Said again, because the answer of before may have been that it could not be written.
                decided += await withdrawn_of(connection, self._keys, voice)
            else:
                await note(
                    connection, Event.CONSENT_WITHDRAWN, voice, now.generation, signed=signed, subject_index=subject
                )
                await self._advance(connection, principal, now, "consent.withdrawn", FREEZES, opted_out=int(opt_out))
                name = self._keys.subject(voice.tenant_id, voice.voice_id)
                decided.append(Withdrawn(voice.tenant_id, name, signed.at_s, signed.key_id))
        # Whoever asked may be gone before the nodes have answered, and asks for it no second time.
        self._decisions.note(decided)
        # Nodes first: whoever is named no more is not named while the journal is away.
        told = await self._told(voice)
        await self._decisions.write(decided)
        return told

    async def give_consent(self, principal: Principal, voice_id: str, consent: Consent) -> Voice:
        """Keep a new consent; a frozen voice is used again. Raises NotFound, Denied, Conflict, InvalidRequest."""
        require_consent(consent, whole=True)
        async with self._database.write() as connection:
            voice, now = await self._locked(connection, principal, voice_id, Right.CHANGE)
            if now.row.scope == VoiceScope.GLOBAL.value:
                raise Conflict("a global voice is used by licence, not by consent")
            subject = await subject_of(connection, voice)
            if subject is not None:
                await require_not_opted_out(connection, voice.tenant_id, subject, consent)
            evidence = await keep_consent(
                connection,
                self._keys,
                Dated(voice, now.generation + 1, now.key, Signed(principal.key_id, self._clock.wall_s())),
                consent,
                subject_index=subject,
                recordings=(),
            )
            values: dict[str, Any] = {}
            if now.row.state == FROZEN:
                values = {"state": "pending", "state_reason": "no node holds the voice yet", "state_code": ""}
            await self._advance(connection, principal, now, "consent.given", values, evidence=evidence)
        return await self._told(voice)

    async def _locked(
        self, connection: AsyncConnection, principal: Principal, voice_id: str, right: Right
    ) -> tuple[VoiceAddress, Held]:
        # Who writes takes the head first, everywhere, so that no two wait for each other.
        await locked_head(connection)
        voice = await find_voice(connection, principal, voice_id, right)
        now = await held(connection, self._keys, voice)
        if now is None:
            raise NotFound(NO_SUCH_VOICE)  # erased, or being so
        require(decide(principal, facts_of(now.row), right))
        if now.row.state == "failed":
            raise Conflict("the voice's enrolment failed: enrol it anew")
        return voice, now

    async def _advance(
        self,
        connection: AsyncConnection,
        principal: Principal,
        now: Held,
        action: str,
        values: Mapping[str, Any],
        **facts: str | int,
    ) -> int:
        at = At(self._clock.wall_s(), await self._database.lease_now_s(connection))
        return await advance(connection, self._keys, now, action, values, at=at, key_id=principal.key_id, facts=facts)

    async def _told(self, voice: VoiceAddress) -> Voice:
        await self._library.spread(voice)
        return await self._library.get(voice)
