"""Up to where a holder that was held has to catch up, whatever the database's clock says by then."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the column."""
    op.add_column("node_leases", sa.Column("held_revision", sa.BigInteger(), nullable=False, server_default="0"))


def downgrade() -> None:
    """Take it away."""
    op.drop_column("node_leases", "held_revision")
