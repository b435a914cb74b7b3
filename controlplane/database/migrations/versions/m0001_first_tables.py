"""The first tables, and the triggers that let the audit only grow."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

SQLITE_TRIGGERS = (
    "CREATE TRIGGER audit_no_update BEFORE UPDATE ON audit BEGIN SELECT RAISE(ABORT, 'the audit only grows'); END",
    "CREATE TRIGGER audit_no_delete BEFORE DELETE ON audit BEGIN SELECT RAISE(ABORT, 'the audit only grows'); END",
    # Also stops INSERT OR REPLACE, which fires no DELETE trigger.
    "CREATE TRIGGER audit_no_gap BEFORE INSERT ON audit"
    " WHEN NEW.sequence <> (SELECT COALESCE(MAX(sequence), 0) + 1 FROM audit)"
    " BEGIN SELECT RAISE(ABORT, 'the audit only grows, one row at a time'); END",
)

POSTGRESQL_TRIGGERS = (
    "CREATE FUNCTION audit_only_grows() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
    " IF TG_OP = 'INSERT' AND NEW.sequence = (SELECT COALESCE(MAX(sequence), 0) + 1 FROM audit) THEN RETURN NEW;"
    " END IF; RAISE EXCEPTION 'the audit only grows, one row at a time'; END $$",
    "CREATE TRIGGER audit_only_grows BEFORE INSERT OR UPDATE OR DELETE ON audit"
    " FOR EACH ROW EXECUTE FUNCTION audit_only_grows()",
    "CREATE TRIGGER audit_no_truncate BEFORE TRUNCATE ON audit FOR EACH STATEMENT EXECUTE FUNCTION audit_only_grows()",
)


def upgrade() -> None:
    """Make everything."""
    op.create_table(
        "audit",
        sa.Column("sequence", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("body", sa.Text(), nullable=False),
        sa.Column("previous_hash", sa.LargeBinary(), nullable=False),
        sa.Column("hash", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("sequence"),
    )
    op.create_table(
        "erasures",
        sa.Column("audit_id", sa.String(length=64), nullable=False),
        sa.Column("tenant_id", sa.String(length=64), nullable=False),
        sa.Column("voice_id", sa.String(length=64), nullable=False),
        sa.Column("generation", sa.BigInteger(), nullable=False),
        sa.Column("revision", sa.BigInteger(), nullable=False),
        sa.Column("trigger_kind", sa.String(length=32), nullable=False),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("requested_at_s", sa.Float(), nullable=False),
        sa.Column("erased_at_s", sa.Float(), nullable=True),
        sa.Column("nodes", sa.Text(), nullable=False),
        sa.Column("residual_node_ids", sa.Text(), nullable=False),
        sa.Column("blob_bytes_deleted", sa.BigInteger(), nullable=False),
        sa.Column("blobs_pending", sa.Boolean(), nullable=False),
        sa.PrimaryKeyConstraint("audit_id"),
    )
    op.create_index("erasures_by_state", "erasures", ["state"], unique=False)
    op.create_index("erasures_by_voice", "erasures", ["tenant_id", "voice_id"], unique=False)
    op.create_table(
        "fleet_head",
        sa.Column("head_id", sa.Integer(), nullable=False),
        sa.Column("revision", sa.BigInteger(), nullable=False),
        sa.Column("incarnation", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("head_id"),
    )
    op.create_table(
        "fleet_log",
        sa.Column("revision", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("tenant_id", sa.String(length=64), nullable=False),
        sa.Column("voice_id", sa.String(length=64), nullable=False),
        sa.Column("generation", sa.BigInteger(), nullable=False),
        sa.Column("kind", sa.String(length=8), nullable=False),
        sa.Column("at_lease_s", sa.Float(), nullable=False),
        sa.PrimaryKeyConstraint("revision"),
    )
    op.create_table(
        "idempotency",
        sa.Column("tenant_id", sa.String(length=64), nullable=False),
        sa.Column("idempotency_key", sa.String(length=255), nullable=False),
        sa.Column("request_digest", sa.LargeBinary(), nullable=False),
        sa.Column("voice_id", sa.String(length=64), nullable=False),
        sa.Column("created_at_s", sa.Float(), nullable=False),
        sa.PrimaryKeyConstraint("tenant_id", "idempotency_key"),
    )
    op.create_index("idempotency_by_age", "idempotency", ["created_at_s"], unique=False)
    op.create_table(
        "node_leases",
        sa.Column("incarnation", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("node_id", sa.String(length=64), nullable=False),
        sa.Column("process_id", sa.String(length=128), nullable=False),
        sa.Column("deadline_lease_s", sa.Float(), nullable=False),
        sa.Column("joined_revision", sa.BigInteger(), nullable=False),
        sa.Column("cursor", sa.BigInteger(), nullable=False),
        sa.Column("num_voices", sa.BigInteger(), nullable=False),
        sa.Column("voices_digest", sa.LargeBinary(), nullable=False),
        sa.Column("address", sa.String(length=255), nullable=False),
        sa.Column("model", sa.String(length=255), nullable=False),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("superseded", sa.Boolean(), nullable=False),
        sa.Column("fenced", sa.Boolean(), nullable=False),
        sa.Column("wiped", sa.Boolean(), nullable=False),
        sa.PrimaryKeyConstraint("incarnation"),
    )
    op.create_index("node_leases_by_fenced", "node_leases", ["fenced"], unique=False)
    op.create_index("node_leases_by_node", "node_leases", ["node_id"], unique=False)
    op.create_table(
        "tenants",
        sa.Column("tenant_id", sa.String(length=64), nullable=False),
        sa.Column("created_at_s", sa.Float(), nullable=False),
        sa.PrimaryKeyConstraint("tenant_id"),
    )
    op.create_table(
        "api_keys",
        sa.Column("key_id", sa.String(length=64), nullable=False),
        sa.Column("tenant_id", sa.String(length=64), nullable=False),
        sa.Column("key_hash", sa.LargeBinary(), nullable=False),
        sa.Column("scopes", sa.Text(), nullable=False),
        sa.Column("created_at_s", sa.Float(), nullable=False),
        sa.Column("revoked_at_s", sa.Float(), nullable=True),
        sa.ForeignKeyConstraint(["tenant_id"], ["tenants.tenant_id"], name="api_keys_tenant"),
        sa.PrimaryKeyConstraint("key_id"),
    )
    op.create_table(
        "voices",
        sa.Column("tenant_id", sa.String(length=64), nullable=False),
        sa.Column("voice_id", sa.String(length=64), nullable=False),
        sa.Column("generation", sa.BigInteger(), nullable=False),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("state_reason", sa.Text(), nullable=False),
        sa.Column("label_ciphertext", sa.LargeBinary(), nullable=True),
        sa.Column("net_speech_ms", sa.Integer(), nullable=False),
        sa.Column("model", sa.Text(), nullable=False),
        sa.Column("revision", sa.BigInteger(), nullable=False),
        sa.Column("created_at_s", sa.Float(), nullable=False),
        sa.Column("updated_at_s", sa.Float(), nullable=False),
        sa.ForeignKeyConstraint(["tenant_id"], ["tenants.tenant_id"], name="voices_tenant"),
        sa.PrimaryKeyConstraint("tenant_id", "voice_id"),
    )
    op.create_index("voices_by_state", "voices", ["state"], unique=False)
    op.create_table(
        "consents",
        sa.Column("tenant_id", sa.String(length=64), nullable=False),
        sa.Column("voice_id", sa.String(length=64), nullable=False),
        sa.Column("generation", sa.BigInteger(), nullable=False),
        sa.Column("ciphertext", sa.LargeBinary(), nullable=False),
        sa.Column("created_at_s", sa.Float(), nullable=False),
        sa.ForeignKeyConstraint(
            ["tenant_id", "voice_id"], ["voices.tenant_id", "voices.voice_id"], name="consents_voice"
        ),
        sa.PrimaryKeyConstraint("tenant_id", "voice_id", "generation"),
    )
    op.create_table(
        "data_keys",
        sa.Column("tenant_id", sa.String(length=64), nullable=False),
        sa.Column("voice_id", sa.String(length=64), nullable=False),
        sa.Column("wrapped", sa.LargeBinary(), nullable=False),
        sa.Column("created_at_s", sa.Float(), nullable=False),
        sa.ForeignKeyConstraint(
            ["tenant_id", "voice_id"], ["voices.tenant_id", "voices.voice_id"], name="data_keys_voice"
        ),
        sa.PrimaryKeyConstraint("tenant_id", "voice_id"),
    )
    op.create_table(
        "samples",
        sa.Column("tenant_id", sa.String(length=64), nullable=False),
        sa.Column("voice_id", sa.String(length=64), nullable=False),
        sa.Column("generation", sa.BigInteger(), nullable=False),
        sa.Column("clip", sa.Integer(), nullable=False),
        sa.Column("blob_key", sa.String(length=255), nullable=False),
        sa.Column("blob_bytes", sa.BigInteger(), nullable=False),
        sa.Column("encoding", sa.Integer(), nullable=False),
        sa.Column("sample_rate_hz", sa.Integer(), nullable=False),
        sa.Column("channels", sa.Integer(), nullable=False),
        sa.ForeignKeyConstraint(
            ["tenant_id", "voice_id"], ["voices.tenant_id", "voices.voice_id"], name="samples_voice"
        ),
        sa.PrimaryKeyConstraint("tenant_id", "voice_id", "generation", "clip"),
    )
    op.create_table(
        "voiceprints",
        sa.Column("tenant_id", sa.String(length=64), nullable=False),
        sa.Column("voice_id", sa.String(length=64), nullable=False),
        sa.Column("model", sa.String(length=255), nullable=False),
        sa.Column("generation", sa.BigInteger(), nullable=False),
        sa.Column("net_speech_ms", sa.Integer(), nullable=False),
        sa.Column("ciphertext", sa.LargeBinary(), nullable=False),
        sa.ForeignKeyConstraint(
            ["tenant_id", "voice_id"], ["voices.tenant_id", "voices.voice_id"], name="voiceprints_voice"
        ),
        sa.PrimaryKeyConstraint("tenant_id", "voice_id", "model"),
    )
    op.execute("INSERT INTO fleet_head (head_id, revision, incarnation) VALUES (1, 0, 0)")
    triggers = SQLITE_TRIGGERS if op.get_bind().dialect.name == "sqlite" else POSTGRESQL_TRIGGERS
    for statement in triggers:
        op.execute(statement)
