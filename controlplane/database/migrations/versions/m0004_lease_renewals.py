"""How often each lease was prolonged: what a silent holder is told by, whatever the database's clock says."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the column."""
    op.add_column("node_leases", sa.Column("renewals", sa.BigInteger(), nullable=False, server_default="0"))


def downgrade() -> None:
    """Take it away."""
    op.drop_column("node_leases", "renewals")
