"""What proves an erasure: who asked for it, the journal that it went into, and the epoch that a restore changes."""

from __future__ import annotations

import secrets

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

HEAD = ("epoch", "run", "journal_id")
ERASURES = (
    "source",
    "trigger_user",
    "reason_ciphertext",
    "key_id",
    "replicas_evicted",
    "journaled",
    "is_open",
)


def upgrade() -> None:
    """Add the columns; erasures of before are looked at once more, so that the journal learns of them."""
    for name in HEAD:
        op.add_column("fleet_head", sa.Column(name, sa.String(64), nullable=False, server_default=""))
    op.execute(sa.text("UPDATE fleet_head SET epoch = :epoch").bindparams(epoch=secrets.token_hex(8)))
    op.add_column("node_leases", sa.Column("kind", sa.String(8), nullable=False, server_default="node"))
    op.add_column("erasures", sa.Column("source", sa.String(32), nullable=False, server_default="api"))
    op.add_column("erasures", sa.Column("trigger_user", sa.String(128), nullable=False, server_default=""))
    op.add_column("erasures", sa.Column("reason_ciphertext", sa.LargeBinary(), nullable=True))
    op.add_column("erasures", sa.Column("key_id", sa.String(64), nullable=False, server_default=""))
    op.add_column("erasures", sa.Column("replicas_evicted", sa.Integer(), nullable=False, server_default="0"))
    op.add_column("erasures", sa.Column("journaled", sa.Boolean(), nullable=False, server_default=sa.false()))
    op.add_column("erasures", sa.Column("is_open", sa.Boolean(), nullable=False, server_default=sa.true()))
    op.create_index("erasures_by_open", "erasures", ["is_open"], unique=False)


def downgrade() -> None:
    """Take them away."""
    op.drop_index("erasures_by_open", table_name="erasures")
    for name in reversed(ERASURES):
        op.drop_column("erasures", name)
    op.drop_column("node_leases", "kind")
    for name in reversed(HEAD):
        op.drop_column("fleet_head", name)
