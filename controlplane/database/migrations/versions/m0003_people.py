"""Scopes and owners of voices, users, quotas, licences, and rows that only grow."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from alembic import op

from controlplane.database.triggers import (
    IMMUTABLE,
    POSTGRESQL_FUNCTION,
    postgresql_triggers,
    sqlite_triggers,
)

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

ID = sa.String(length=64)

ADDED: dict[str, tuple[tuple[str, sa.types.TypeEngine[Any], str | None], ...]] = {
    # (name, type, what rows of before get; None: NULL)
    "tenants": (
        ("closed_at_s", sa.Float(), None),
        ("voices_max", sa.BigInteger(), None),
        ("streams_max", sa.BigInteger(), None),
        ("jobs_max", sa.BigInteger(), None),
        ("storage_bytes_max", sa.BigInteger(), None),
    ),
    "api_keys": (
        ("user_id", ID, None),
        ("purpose", sa.String(length=100), ""),
        ("expires_at_s", sa.Float(), None),
        ("last_used_at_s", sa.Float(), None),
        ("replaced_by", ID, None),
    ),
    "voices": (
        ("scope", sa.String(length=8), "tenant"),
        ("owner_user_id", ID, None),
        ("label_index", sa.LargeBinary(), None),
        ("language", sa.String(length=35), ""),
        ("gender", sa.String(length=16), ""),
        ("details_ciphertext", sa.LargeBinary(), None),
    ),
    "data_keys": (("kek_id", sa.String(length=16), ""),),
    "voiceprints": (("quality", sa.Float(), None), ("num_members", sa.Integer(), "1")),
    "samples": (("purpose", sa.String(length=16), "reference"),),
    "consents": (
        ("given_at_s", sa.Float(), None),
        ("version", sa.String(length=64), ""),
        ("subject_index", sa.LargeBinary(), None),
        ("evidence", sa.LargeBinary(), None),
        ("key_id", ID, None),
    ),
}

INDICES = (
    ("api_keys_by_tenant", "api_keys", ["tenant_id"]),
    ("voices_by_id", "voices", ["voice_id"]),
    ("voices_by_label", "voices", ["tenant_id", "label_index"]),
    ("consents_by_subject", "consents", ["tenant_id", "subject_index"]),
)


def upgrade() -> None:
    """Add everything."""
    for table, columns in ADDED.items():
        for name, kind, default in columns:
            op.add_column(table, sa.Column(name, kind, nullable=default is None, server_default=default))
    # A consent outlives its voice.
    with op.batch_alter_table("consents") as batch:
        batch.drop_constraint("consents_voice", type_="foreignkey")
    _tables_of_people()
    _tables_of_agreements()
    for name, table, indexed in INDICES:
        op.create_index(name, table, indexed, unique=False)
    if op.get_bind().dialect.name == "sqlite":
        # The triggers of the first migration let a row be replaced under its hidden rowid.
        op.execute("DROP TRIGGER audit_no_update")
        op.execute("DROP TRIGGER audit_no_delete")
        for table in IMMUTABLE:
            for statement in sqlite_triggers(table).values():
                op.execute(statement)
        return
    op.execute("DROP TRIGGER audit_no_truncate ON audit")
    op.execute("ALTER TABLE audit ENABLE ALWAYS TRIGGER audit_only_grows")
    op.execute(POSTGRESQL_FUNCTION)
    for table in IMMUTABLE:
        for name, statement in postgresql_triggers(table).items():
            op.execute(statement)
            op.execute(f"ALTER TABLE {table} ENABLE ALWAYS TRIGGER {name}")


def downgrade() -> None:
    """Take it away again. Consents of voices that are gone are lost, and so are licences and usage records."""
    sqlite = op.get_bind().dialect.name == "sqlite"
    for table in IMMUTABLE:
        for name in sqlite_triggers(table) if sqlite else postgresql_triggers(table):
            op.execute(f"DROP TRIGGER {name}" if sqlite else f"DROP TRIGGER {name} ON {table}")
    if sqlite:
        for event in ("update", "delete"):
            op.execute(
                f"CREATE TRIGGER audit_no_{event} BEFORE {event.upper()} ON audit"
                " BEGIN SELECT RAISE(ABORT, 'the audit only grows'); END"
            )
    else:
        op.execute("DROP FUNCTION rows_only_grow()")
        op.execute(
            "CREATE TRIGGER audit_no_truncate BEFORE TRUNCATE ON audit"
            " FOR EACH STATEMENT EXECUTE FUNCTION audit_only_grows()"
        )
    for name, table, _ in INDICES:
        op.drop_index(name, table_name=table)
    for table in (
        "leaders",
        "usage_records",
        "agreement_events",
        "licences",
        "voiceprint_members",
        "wrapped_secrets",
        "users",
    ):
        op.drop_table(table)
    op.execute(
        "DELETE FROM consents WHERE NOT EXISTS (SELECT 1 FROM voices"
        " WHERE voices.tenant_id = consents.tenant_id AND voices.voice_id = consents.voice_id)"
    )
    op.execute("DELETE FROM samples WHERE purpose <> 'reference'")
    for table, columns in ADDED.items():
        with op.batch_alter_table(table) as batch:
            for name, _, _ in columns:
                batch.drop_column(name)
    with op.batch_alter_table("consents") as batch:
        batch.create_foreign_key("consents_voice", "voices", ["tenant_id", "voice_id"], ["tenant_id", "voice_id"])


def _tables_of_people() -> None:
    op.create_table(
        "users",
        sa.Column("tenant_id", ID, nullable=False),
        sa.Column("user_id", ID, nullable=False),
        sa.Column("created_at_s", sa.Float(), nullable=False),
        sa.Column("closed_at_s", sa.Float(), nullable=True),
        sa.ForeignKeyConstraint(["tenant_id"], ["tenants.tenant_id"], name="users_tenant"),
        sa.PrimaryKeyConstraint("tenant_id", "user_id"),
    )
    op.create_table(
        "wrapped_secrets",
        sa.Column("name", sa.String(length=80), nullable=False),
        sa.Column("wrapped", sa.LargeBinary(), nullable=False),
        sa.Column("created_at_s", sa.Float(), nullable=False),
        sa.Column("kek_id", sa.String(length=16), server_default="", nullable=False),
        sa.PrimaryKeyConstraint("name"),
    )
    op.create_table(
        "voiceprint_members",
        sa.Column("tenant_id", ID, nullable=False),
        sa.Column("voice_id", ID, nullable=False),
        sa.Column("model", sa.String(length=255), nullable=False),
        sa.Column("generation", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("clip", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("net_speech_ms", sa.Integer(), nullable=False),
        sa.Column("cohesion", sa.Float(), nullable=True),
        sa.Column("left_out", sa.Boolean(), nullable=False),
        sa.Column("ciphertext", sa.LargeBinary(), nullable=False),
        sa.ForeignKeyConstraint(
            ["tenant_id", "voice_id"], ["voices.tenant_id", "voices.voice_id"], name="voiceprint_members_voice"
        ),
        sa.PrimaryKeyConstraint("tenant_id", "voice_id", "model", "generation", "clip"),
    )
    op.create_table(
        "usage_records",
        sa.Column("record_id", ID, nullable=False),
        sa.Column("tenant_id", ID, nullable=False),
        sa.Column("subject", sa.String(length=64), nullable=False),
        sa.Column("unit", sa.String(length=16), nullable=False),
        sa.Column("quantity", sa.BigInteger(), nullable=False),
        sa.Column("at_s", sa.Float(), nullable=False),
        sa.PrimaryKeyConstraint("record_id"),
    )
    op.create_index("usage_records_by_tenant", "usage_records", ["tenant_id", "at_s"], unique=False)
    op.create_index("usage_records_by_subject", "usage_records", ["subject", "unit"], unique=False)
    op.create_table(
        "leaders",
        sa.Column("chore", sa.String(length=64), nullable=False),
        sa.Column("holder_id", sa.String(length=64), nullable=False),
        sa.Column("until_lease_s", sa.Float(), nullable=False),
        sa.PrimaryKeyConstraint("chore"),
    )


def _tables_of_agreements() -> None:
    op.create_table(
        "licences",
        sa.Column("tenant_id", ID, nullable=False),
        sa.Column("voice_id", ID, nullable=False),
        sa.Column("generation", sa.BigInteger(), nullable=False),
        sa.Column("kind", sa.String(length=16), nullable=False),
        sa.Column("expires_at_s", sa.Float(), nullable=True),
        sa.Column("unit", sa.String(length=16), nullable=False),
        sa.Column("usage_max", sa.BigInteger(), nullable=True),
        sa.Column("ciphertext", sa.LargeBinary(), nullable=False),
        sa.Column("created_at_s", sa.Float(), nullable=False),
        sa.Column("evidence", sa.LargeBinary(), nullable=False),
        sa.Column("key_id", ID, nullable=True),
        sa.PrimaryKeyConstraint("tenant_id", "voice_id", "generation"),
    )
    op.create_table(
        "agreement_events",
        sa.Column("sequence", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("tenant_id", ID, nullable=False),
        sa.Column("voice_id", ID, nullable=False),
        sa.Column("generation", sa.BigInteger(), nullable=False),
        sa.Column("kind", sa.String(length=24), nullable=False),
        sa.Column("subject_index", sa.LargeBinary(), nullable=True),
        sa.Column("at_s", sa.Float(), nullable=False),
        sa.Column("key_id", ID, nullable=True),
        sa.PrimaryKeyConstraint("sequence"),
    )
    op.create_index("agreement_events_by_voice", "agreement_events", ["tenant_id", "voice_id"], unique=False)
    op.create_index("agreement_events_by_subject", "agreement_events", ["tenant_id", "subject_index"], unique=False)
