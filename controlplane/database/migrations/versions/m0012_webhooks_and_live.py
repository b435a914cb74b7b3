"""Webhooks: what they are signed with, and whom to tell of which job's end. Live sessions over WebSockets."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0012"
down_revision = "0011"
branch_labels = None
depends_on = None

ID = sa.String(64)


def upgrade() -> None:
    """Add the tables."""
    op.create_table(
        "webhook_secrets",
        sa.Column("tenant_id", ID, primary_key=True),
        sa.Column("ciphertext", sa.LargeBinary(), nullable=False),
        sa.Column("created_at_s", sa.Float(), nullable=False),
        sa.ForeignKeyConstraint(["tenant_id"], ["tenants.tenant_id"], name="webhook_secrets_tenant"),
    )
    op.create_table(
        "webhook_deliveries",
        sa.Column("job_id", ID, primary_key=True),
        sa.Column("tenant_id", ID, nullable=False),
        sa.Column("url_ciphertext", sa.LargeBinary(), nullable=False),
        sa.Column("status_only", sa.Boolean(), nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("attempts", sa.Integer(), nullable=False, server_default="0"),
        sa.Column("reason", sa.String(32), nullable=False, server_default=""),
        sa.Column("due_lease_s", sa.Float(), nullable=False),
        sa.Column("claimed_until_lease_s", sa.Float(), nullable=False, server_default="0"),
        sa.Column("created_at_s", sa.Float(), nullable=False),
        sa.Column("ended_at_s", sa.Float()),
    )
    op.create_index("webhook_deliveries_by_due", "webhook_deliveries", ["state", "due_lease_s"])
    op.create_table(
        "live_sessions",
        sa.Column("session_id", ID, primary_key=True),
        sa.Column("tenant_id", ID, nullable=False),
        sa.Column("key_id", ID, nullable=False),
        sa.Column("token_hash", sa.LargeBinary(), nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("created_at_s", sa.Float(), nullable=False),
        sa.Column("started_at_s", sa.Float()),
        sa.Column("completed_at_s", sa.Float()),
        sa.Column("seen_lease_s", sa.Float(), nullable=False, server_default="0"),
    )
    op.create_index("live_sessions_by_age", "live_sessions", ["created_at_s"])


def downgrade() -> None:
    """Take them away."""
    op.drop_table("live_sessions")
    op.drop_table("webhook_deliveries")
    op.drop_table("webhook_secrets")
