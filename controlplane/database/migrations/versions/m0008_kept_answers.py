"""Answers to requests that carried an Idempotency-Key."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Make the table."""
    op.create_table(
        "kept_answers",
        sa.Column("name", sa.String(64), primary_key=True),
        sa.Column("tenant_id", sa.String(64), nullable=False),
        sa.Column("request_digest", sa.LargeBinary(), nullable=False),
        sa.Column("began_at_s", sa.Float(), nullable=False),
        sa.Column("status", sa.Integer()),
        sa.Column("ciphertext", sa.LargeBinary()),
    )
    op.create_index("kept_answers_by_age", "kept_answers", ["began_at_s"])


def downgrade() -> None:
    """Drop it."""
    op.drop_table("kept_answers")
