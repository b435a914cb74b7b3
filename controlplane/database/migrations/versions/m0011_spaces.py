"""Spaces with identities, audios and voiceprints; what was used in them; and the voice that a user calls their own."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None

TABLES = (
    "space_keys",
    "spaces",
    "space_collaborators",
    "space_identities",
    "space_audios",
    "space_voiceprints",
    "space_members",
    "space_verifications",
    "space_records",
    "voice_profiles",
)


def upgrade() -> None:
    """Make the tables."""
    op.create_table(
        "space_keys",
        sa.Column("tenant_id", sa.String(length=64), nullable=False),
        sa.Column("thing_id", sa.String(length=36), nullable=False),
        sa.Column("wrapped", sa.LargeBinary(), nullable=False),
        sa.Column("created_at_s", sa.Float(), nullable=False),
        sa.Column("kek_id", sa.String(length=16), nullable=False),
        sa.PrimaryKeyConstraint("tenant_id", "thing_id"),
    )
    op.create_table(
        "spaces",
        sa.Column("tenant_id", sa.String(length=64), nullable=False),
        sa.Column("space_id", sa.String(length=36), nullable=False),
        sa.Column("owner_user_id", sa.String(length=64), nullable=False),
        sa.Column("handle", sa.String(length=50), nullable=False),
        sa.Column("alias_ciphertext", sa.LargeBinary(), nullable=True),
        sa.Column("created_at_s", sa.Float(), nullable=False),
        sa.PrimaryKeyConstraint("tenant_id", "space_id"),
        sa.UniqueConstraint("tenant_id", "owner_user_id", "handle", name="spaces_handle"),
        sa.ForeignKeyConstraint(["tenant_id"], ["tenants.tenant_id"], name="spaces_tenant"),
    )
    op.create_table(
        "space_collaborators",
        sa.Column("tenant_id", sa.String(length=64), nullable=False),
        sa.Column("space_id", sa.String(length=36), nullable=False),
        sa.Column("user_id", sa.String(length=64), nullable=False),
        sa.Column("may_write", sa.Boolean(), nullable=False),
        sa.Column("created_at_s", sa.Float(), nullable=False),
        sa.PrimaryKeyConstraint("tenant_id", "space_id", "user_id"),
        sa.ForeignKeyConstraint(
            ["tenant_id", "space_id"], ["spaces.tenant_id", "spaces.space_id"], name="space_collaborators_space"
        ),
    )
    op.create_table(
        "space_identities",
        sa.Column("tenant_id", sa.String(length=64), nullable=False),
        sa.Column("identity_id", sa.String(length=36), nullable=False),
        sa.Column("space_id", sa.String(length=36), nullable=False),
        sa.Column("handle", sa.String(length=50), nullable=False),
        sa.Column("said_ciphertext", sa.LargeBinary(), nullable=True),
        sa.Column("voice_id", sa.String(length=64), nullable=False),
        sa.Column("created_at_s", sa.Float(), nullable=False),
        sa.PrimaryKeyConstraint("tenant_id", "identity_id"),
        sa.UniqueConstraint("tenant_id", "space_id", "handle", name="space_identities_handle"),
        sa.ForeignKeyConstraint(
            ["tenant_id", "space_id"], ["spaces.tenant_id", "spaces.space_id"], name="space_identities_space"
        ),
        sa.UniqueConstraint("tenant_id", "voice_id", name="space_identities_voice"),
    )
    op.create_table(
        "space_audios",
        sa.Column("tenant_id", sa.String(length=64), nullable=False),
        sa.Column("audio_id", sa.String(length=36), nullable=False),
        sa.Column("space_id", sa.String(length=36), nullable=False),
        sa.Column("handle", sa.String(length=50), nullable=False),
        sa.Column("alias_ciphertext", sa.LargeBinary(), nullable=True),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("identity_id", sa.String(length=36), nullable=True),
        sa.Column("blob_key", sa.String(length=255), nullable=True),
        sa.Column("blob_bytes", sa.BigInteger(), nullable=False),
        sa.Column("duration_ms", sa.Integer(), nullable=True),
        sa.Column("voice_ms", sa.Integer(), nullable=True),
        sa.Column("num_speakers", sa.Integer(), nullable=True),
        sa.Column("sample_rate_hz", sa.Integer(), nullable=True),
        sa.Column("created_at_s", sa.Float(), nullable=False),
        sa.Column("uploaded_at_s", sa.Float(), nullable=True),
        sa.PrimaryKeyConstraint("tenant_id", "audio_id"),
        sa.UniqueConstraint("tenant_id", "space_id", "handle", name="space_audios_handle"),
        sa.ForeignKeyConstraint(
            ["tenant_id", "space_id"], ["spaces.tenant_id", "spaces.space_id"], name="space_audios_space"
        ),
    )
    op.create_index("space_audios_by_blob", "space_audios", ["blob_key"])
    op.create_index("space_audios_by_identity", "space_audios", ["tenant_id", "identity_id"])
    op.create_table(
        "space_voiceprints",
        sa.Column("tenant_id", sa.String(length=64), nullable=False),
        sa.Column("voiceprint_id", sa.String(length=36), nullable=False),
        sa.Column("space_id", sa.String(length=36), nullable=False),
        sa.Column("identity_id", sa.String(length=36), nullable=False),
        sa.Column("handle", sa.String(length=50), nullable=False),
        sa.Column("alias_ciphertext", sa.LargeBinary(), nullable=True),
        sa.Column("model_handle", sa.String(length=20), nullable=False),
        sa.Column("model_version", sa.String(length=20), nullable=False),
        sa.Column("min_audios", sa.Integer(), nullable=False),
        sa.Column("created_at_s", sa.Float(), nullable=False),
        sa.Column("computed_at_s", sa.Float(), nullable=True),
        sa.Column("engine_model", sa.String(length=255), nullable=True),
        sa.Column("net_speech_ms", sa.Integer(), nullable=True),
        sa.Column("ciphertext", sa.LargeBinary(), nullable=True),
        sa.PrimaryKeyConstraint("tenant_id", "voiceprint_id"),
        sa.UniqueConstraint("tenant_id", "identity_id", "handle", name="space_voiceprints_handle"),
        sa.ForeignKeyConstraint(
            ["tenant_id", "identity_id"],
            ["space_identities.tenant_id", "space_identities.identity_id"],
            name="space_voiceprints_identity",
        ),
        sa.ForeignKeyConstraint(
            ["tenant_id", "space_id"], ["spaces.tenant_id", "spaces.space_id"], name="space_voiceprints_space"
        ),
    )
    op.create_table(
        "space_members",
        sa.Column("tenant_id", sa.String(length=64), nullable=False),
        sa.Column("voiceprint_id", sa.String(length=36), nullable=False),
        sa.Column("audio_id", sa.String(length=36), nullable=False),
        sa.Column("position", sa.Integer(), nullable=False),
        sa.Column("duration_ms", sa.Integer(), nullable=False),
        sa.Column("voice_ms", sa.Integer(), nullable=False),
        sa.Column("left_out", sa.Boolean(), nullable=False),
        sa.Column("added_at_s", sa.Float(), nullable=False),
        sa.PrimaryKeyConstraint("tenant_id", "voiceprint_id", "audio_id"),
        sa.ForeignKeyConstraint(
            ["tenant_id", "audio_id"], ["space_audios.tenant_id", "space_audios.audio_id"], name="space_members_audio"
        ),
        sa.ForeignKeyConstraint(
            ["tenant_id", "voiceprint_id"],
            ["space_voiceprints.tenant_id", "space_voiceprints.voiceprint_id"],
            name="space_members_voiceprint",
        ),
    )
    op.create_table(
        "space_verifications",
        sa.Column("tenant_id", sa.String(length=64), nullable=False),
        sa.Column("verification_id", sa.String(length=36), nullable=False),
        sa.Column("space_id", sa.String(length=36), nullable=False),
        sa.Column("identity_id", sa.String(length=36), nullable=False),
        sa.Column("voiceprint_id", sa.String(length=36), nullable=False),
        sa.Column("audio_id", sa.String(length=36), nullable=False),
        sa.Column("score", sa.Float(), nullable=False),
        sa.Column("created_at_s", sa.Float(), nullable=False),
        sa.PrimaryKeyConstraint("tenant_id", "verification_id"),
        sa.ForeignKeyConstraint(
            ["tenant_id", "space_id"], ["spaces.tenant_id", "spaces.space_id"], name="space_verifications_space"
        ),
    )
    op.create_index("space_verifications_by_audio", "space_verifications", ["tenant_id", "audio_id"])
    op.create_index("space_verifications_by_voiceprint", "space_verifications", ["tenant_id", "voiceprint_id"])
    op.create_table(
        "space_records",
        sa.Column("tenant_id", sa.String(length=64), nullable=False),
        sa.Column("record_id", sa.String(length=36), nullable=False),
        sa.Column("owner_user_id", sa.String(length=64), nullable=False),
        sa.Column("kind", sa.String(length=16), nullable=False),
        sa.Column("space_id", sa.String(length=36), nullable=False),
        sa.Column("identity_id", sa.String(length=36), nullable=False),
        sa.Column("voiceprint_id", sa.String(length=36), nullable=False),
        sa.Column("model", sa.String(length=40), nullable=False),
        sa.Column("num_audios", sa.Integer(), nullable=False),
        sa.Column("duration_ms", sa.Integer(), nullable=False),
        sa.Column("voice_ms", sa.Integer(), nullable=False),
        sa.Column("at_s", sa.Float(), nullable=False),
        sa.Column("key_id", sa.String(length=64), nullable=False),
        sa.PrimaryKeyConstraint("tenant_id", "record_id"),
    )
    op.create_index("space_records_by_owner", "space_records", ["tenant_id", "owner_user_id", "kind", "at_s"])
    op.create_table(
        "voice_profiles",
        sa.Column("tenant_id", sa.String(length=64), nullable=False),
        sa.Column("user_id", sa.String(length=64), nullable=False),
        sa.Column("voice_id", sa.String(length=64), nullable=False),
        sa.Column("consent_version", sa.String(length=64), nullable=False),
        sa.Column("created_at_s", sa.Float(), nullable=False),
        sa.PrimaryKeyConstraint("tenant_id", "user_id"),
        sa.UniqueConstraint("tenant_id", "voice_id", name="voice_profiles_voice"),
        sa.ForeignKeyConstraint(
            ["tenant_id", "voice_id"], ["voices.tenant_id", "voices.voice_id"], name="voice_profiles_voice_row"
        ),
    )


def downgrade() -> None:
    """Drop them."""
    for table in reversed(TABLES):
        op.drop_table(table)
