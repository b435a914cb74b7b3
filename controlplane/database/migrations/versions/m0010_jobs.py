"""Jobs, what they give, and the recordings that they are about."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the tables."""
    op.create_table(
        "media",
        sa.Column("media_id", sa.String(64), primary_key=True),
        sa.Column("tenant_id", sa.String(64), nullable=False),
        sa.Column("key_index", sa.LargeBinary()),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("size_bytes", sa.BigInteger(), nullable=False, server_default="0"),
        sa.Column("is_plain", sa.Boolean(), nullable=False),
        sa.Column("created_at_s", sa.Float(), nullable=False),
        sa.Column("expires_at_s", sa.Float(), nullable=False),
        sa.ForeignKeyConstraint(["tenant_id"], ["tenants.tenant_id"], name="media_tenant"),
    )
    op.create_index("media_by_key", "media", ["tenant_id", "key_index"])
    op.create_index("media_by_state", "media", ["state", "expires_at_s"])
    op.create_table(
        "jobs",
        sa.Column("job_id", sa.String(64), primary_key=True),
        sa.Column("tenant_id", sa.String(64), nullable=False),
        sa.Column("user_id", sa.String(64)),
        sa.Column("key_id", sa.String(64), nullable=False),
        sa.Column("kind", sa.String(16), nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("priority", sa.Integer(), nullable=False),
        sa.Column("spec_ciphertext", sa.LargeBinary()),
        sa.Column("media_id", sa.String(64)),
        sa.Column("idempotency_index", sa.LargeBinary()),
        sa.Column("request_digest", sa.LargeBinary(), nullable=False),
        sa.Column("attempt", sa.BigInteger(), nullable=False, server_default="0"),
        sa.Column("failures", sa.Integer(), nullable=False, server_default="0"),
        sa.Column("worker_id", sa.String(64), nullable=False, server_default=""),
        sa.Column("until_lease_s", sa.Float(), nullable=False, server_default="0"),
        sa.Column("not_before_lease_s", sa.Float(), nullable=False, server_default="0"),
        sa.Column("processed_ms", sa.BigInteger(), nullable=False, server_default="0"),
        sa.Column("duration_ms", sa.BigInteger(), nullable=False, server_default="0"),
        sa.Column("error", sa.Text()),
        sa.Column("warning", sa.Text()),
        sa.Column("created_at_s", sa.Float(), nullable=False),
        sa.Column("updated_at_s", sa.Float(), nullable=False),
        sa.Column("ended_at_s", sa.Float()),
        sa.Column("expires_at_s", sa.Float()),
        sa.ForeignKeyConstraint(["tenant_id"], ["tenants.tenant_id"], name="jobs_tenant"),
    )
    op.create_index("jobs_by_end", "jobs", ["ended_at_s"])
    op.create_index("jobs_by_media", "jobs", ["media_id"])
    op.create_index("jobs_by_request", "jobs", ["tenant_id", "idempotency_index"], unique=True)
    op.create_index("jobs_by_state", "jobs", ["state", "tenant_id"])
    op.create_index("jobs_by_tenant", "jobs", ["tenant_id", "created_at_s"])
    op.create_table(
        "job_results",
        sa.Column("job_id", sa.String(64), primary_key=True),
        sa.Column("ciphertext", sa.LargeBinary(), nullable=False),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.job_id"], name="job_results_job"),
    )


def downgrade() -> None:
    """Take them away."""
    op.drop_table("job_results")
    op.drop_table("jobs")
    op.drop_table("media")
