"""Why a voice is in its state, as a short word that software can tell apart."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the column."""
    op.add_column("voices", sa.Column("state_code", sa.String(64), nullable=False, server_default=""))


def downgrade() -> None:
    """Take it away."""
    op.drop_column("voices", "state_code")
