"""The tables of spaces (identities, audios, voiceprints in them) and of voice profiles.

What a name or a voice could be read from is ciphertext under the thing's own key in `space_keys`. An identity is a
voice of the core: `voice_id` says which, from the moment that it is made, so that an erasure knows it whatever happens.
"""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Float,
    ForeignKeyConstraint,
    Index,
    Integer,
    LargeBinary,
    String,
    Table,
    UniqueConstraint,
)

from controlplane.database.schema import ID, metadata

UUID = String(36)
HANDLE = String(50)

# One a thing: a space, an identity, an audio, a voiceprint. Wrapped as data keys are, and rotated with them.
space_keys = Table(
    "space_keys",
    metadata,
    Column("tenant_id", ID, primary_key=True),
    Column("thing_id", UUID, primary_key=True),
    Column("wrapped", LargeBinary, nullable=False),
    Column("created_at_s", Float, nullable=False),
    Column("kek_id", String(16), nullable=False),
)

spaces = Table(
    "spaces",
    metadata,
    Column("tenant_id", ID, primary_key=True),
    Column("space_id", UUID, primary_key=True),
    # "": the organisation, which is the tenant.
    Column("owner_user_id", ID, nullable=False),
    Column("handle", HANDLE, nullable=False),
    Column("alias_ciphertext", LargeBinary),
    Column("created_at_s", Float, nullable=False),
    UniqueConstraint("tenant_id", "owner_user_id", "handle", name="spaces_handle"),
    ForeignKeyConstraint(["tenant_id"], ["tenants.tenant_id"], name="spaces_tenant"),
)


def _of_space(name: str) -> ForeignKeyConstraint:
    return ForeignKeyConstraint(["tenant_id", "space_id"], ["spaces.tenant_id", "spaces.space_id"], name=name)


# Users of the tenant whom the owner of a user's space lets in.
space_collaborators = Table(
    "space_collaborators",
    metadata,
    Column("tenant_id", ID, primary_key=True),
    Column("space_id", UUID, primary_key=True),
    Column("user_id", ID, primary_key=True),
    Column("may_write", Boolean, nullable=False),
    Column("created_at_s", Float, nullable=False),
    _of_space("space_collaborators_space"),
)

space_identities = Table(
    "space_identities",
    metadata,
    Column("tenant_id", ID, primary_key=True),
    Column("identity_id", UUID, primary_key=True),
    Column("space_id", UUID, nullable=False),
    Column("handle", HANDLE, nullable=False),
    # JSON: alias, consent. None: the voice was enrolled elsewhere, and its label is the alias.
    Column("said_ciphertext", LargeBinary),
    # Its voice: there is one once a voiceprint has been computed, or it is being erased.
    Column("voice_id", ID, nullable=False),
    Column("created_at_s", Float, nullable=False),
    UniqueConstraint("tenant_id", "space_id", "handle", name="space_identities_handle"),
    UniqueConstraint("tenant_id", "voice_id", name="space_identities_voice"),
    _of_space("space_identities_space"),
)

space_audios = Table(
    "space_audios",
    metadata,
    Column("tenant_id", ID, primary_key=True),
    Column("audio_id", UUID, primary_key=True),
    Column("space_id", UUID, nullable=False),
    Column("handle", HANDLE, nullable=False),
    Column("alias_ciphertext", LargeBinary),
    # avaitingFile, available, notAvailable
    Column("state", String(16), nullable=False),
    Column("identity_id", UUID),
    # Ciphertext under the audio's own key, and its bytes.
    Column("blob_key", String(255)),
    Column("blob_bytes", BigInteger, nullable=False),
    Column("duration_ms", Integer),
    # Clean speech; None: no node has listened to it.
    Column("voice_ms", Integer),
    Column("num_speakers", Integer),
    Column("sample_rate_hz", Integer),
    Column("created_at_s", Float, nullable=False),
    Column("uploaded_at_s", Float),
    UniqueConstraint("tenant_id", "space_id", "handle", name="space_audios_handle"),
    Index("space_audios_by_identity", "tenant_id", "identity_id"),
    Index("space_audios_by_blob", "blob_key"),
    _of_space("space_audios_space"),
)

space_voiceprints = Table(
    "space_voiceprints",
    metadata,
    Column("tenant_id", ID, primary_key=True),
    Column("voiceprint_id", UUID, primary_key=True),
    Column("space_id", UUID, nullable=False),
    Column("identity_id", UUID, nullable=False),
    Column("handle", HANDLE, nullable=False),
    Column("alias_ciphertext", LargeBinary),
    Column("model_handle", String(20), nullable=False),
    Column("model_version", String(20), nullable=False),
    Column("min_audios", Integer, nullable=False),
    Column("created_at_s", Float, nullable=False),
    # From then on it is frozen.
    Column("computed_at_s", Float),
    # What was computed: of which engine's model, from how much clean speech. None: the voice's own, enrolled elsewhere.
    Column("engine_model", String(255)),
    Column("net_speech_ms", Integer),
    Column("ciphertext", LargeBinary),
    UniqueConstraint("tenant_id", "identity_id", "handle", name="space_voiceprints_handle"),
    _of_space("space_voiceprints_space"),
    ForeignKeyConstraint(
        ["tenant_id", "identity_id"],
        ["space_identities.tenant_id", "space_identities.identity_id"],
        name="space_voiceprints_identity",
    ),
)

# What a voiceprint is made of: kept, with what each audio gave, also when the audio's file is gone.
space_members = Table(
    "space_members",
    metadata,
    Column("tenant_id", ID, primary_key=True),
    Column("voiceprint_id", UUID, primary_key=True),
    Column("audio_id", UUID, primary_key=True),
    Column("position", Integer, nullable=False),
    Column("duration_ms", Integer, nullable=False),
    Column("voice_ms", Integer, nullable=False),
    # Set when it is computed: kept out, being of another person than the others.
    Column("left_out", Boolean, nullable=False),
    Column("added_at_s", Float, nullable=False),
    ForeignKeyConstraint(
        ["tenant_id", "voiceprint_id"],
        ["space_voiceprints.tenant_id", "space_voiceprints.voiceprint_id"],
        name="space_members_voiceprint",
    ),
    ForeignKeyConstraint(
        ["tenant_id", "audio_id"], ["space_audios.tenant_id", "space_audios.audio_id"], name="space_members_audio"
    ),
)

space_verifications = Table(
    "space_verifications",
    metadata,
    Column("tenant_id", ID, primary_key=True),
    Column("verification_id", UUID, primary_key=True),
    Column("space_id", UUID, nullable=False),
    Column("identity_id", UUID, nullable=False),
    Column("voiceprint_id", UUID, nullable=False),
    Column("audio_id", UUID, nullable=False),
    Column("score", Float, nullable=False),
    Column("created_at_s", Float, nullable=False),
    Index("space_verifications_by_voiceprint", "tenant_id", "voiceprint_id"),
    Index("space_verifications_by_audio", "tenant_id", "audio_id"),
    _of_space("space_verifications_space"),
)

# What was used in spaces. Outlives all that it records, so it refers to nothing and holds ids alone: random ones.
space_records = Table(
    "space_records",
    metadata,
    Column("tenant_id", ID, primary_key=True),
    Column("record_id", UUID, primary_key=True),
    Column("owner_user_id", ID, nullable=False),
    # voiceprint, verification
    Column("kind", String(16), nullable=False),
    Column("space_id", UUID, nullable=False),
    Column("identity_id", UUID, nullable=False),
    Column("voiceprint_id", UUID, nullable=False),
    Column("model", String(40), nullable=False),
    Column("num_audios", Integer, nullable=False),
    Column("duration_ms", Integer, nullable=False),
    Column("voice_ms", Integer, nullable=False),
    Column("at_s", Float, nullable=False),
    Column("key_id", ID, nullable=False),
    Index("space_records_by_owner", "tenant_id", "owner_user_id", "kind", "at_s"),
)

# Which voice a user calls their own; at most one.
voice_profiles = Table(
    "voice_profiles",
    metadata,
    Column("tenant_id", ID, primary_key=True),
    Column("user_id", ID, primary_key=True),
    Column("voice_id", ID, nullable=False),
    Column("consent_version", String(64), nullable=False),
    Column("created_at_s", Float, nullable=False),
    UniqueConstraint("tenant_id", "voice_id", name="voice_profiles_voice"),
    ForeignKeyConstraint(
        ["tenant_id", "voice_id"], ["voices.tenant_id", "voices.voice_id"], name="voice_profiles_voice_row"
    ),
)
