"""Whose voice a kept answer tells of."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0013"
down_revision = "0012"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the columns."""
    op.add_column("kept_answers", sa.Column("voice_tenant_id", sa.String(64)))
    op.add_column("kept_answers", sa.Column("voice_id", sa.String(64)))


def downgrade() -> None:
    """Take them away."""
    op.drop_column("kept_answers", "voice_id")
    op.drop_column("kept_answers", "voice_tenant_id")
