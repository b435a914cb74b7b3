"""How long each holder was told to rely on its lease, for control planes that are configured otherwise by now."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the column."""
    op.add_column("node_leases", sa.Column("relied_s", sa.Float(), nullable=False, server_default="0"))


def downgrade() -> None:
    """Take it away."""
    op.drop_column("node_leases", "relied_s")
