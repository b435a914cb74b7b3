"""What nodes were told of each voice, so that what they should hold follows from the log alone, and its tail may go."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the columns, and fill them for voices that are held."""
    with op.batch_alter_table("voices") as voices:
        voices.add_column(sa.Column("told_generation", sa.BigInteger(), nullable=False, server_default="0"))
        voices.add_column(sa.Column("told_models", sa.Text(), nullable=False, server_default=""))
        voices.add_column(sa.Column("first_revision", sa.BigInteger(), nullable=False, server_default="0"))
        voices.add_column(sa.Column("first_at_lease_s", sa.Float(), nullable=False, server_default="0"))
    with op.batch_alter_table("fleet_log") as log:
        log.add_column(sa.Column("models", sa.Text(), nullable=False, server_default=""))
        log.add_column(sa.Column("was_generation", sa.BigInteger(), nullable=False, server_default="0"))
        log.add_column(sa.Column("was_models", sa.Text(), nullable=False, server_default=""))
    gathered = "group_concat" if op.get_bind().dialect.name == "sqlite" else "string_agg"
    same = "p.tenant_id = voices.tenant_id AND p.voice_id = voices.voice_id AND p.generation = voices.generation"
    first = "l.tenant_id = voices.tenant_id AND l.voice_id = voices.voice_id AND l.kind = 'enroll'"
    op.execute(
        "UPDATE voices SET told_generation = generation,"  # noqa: S608 - nothing of it is from outside
        f" told_models = COALESCE((SELECT {gathered}(p.model, '\n') FROM voiceprints p WHERE {same}), '')"
        " WHERE revision > 0 AND state IN ('pending', 'ready')"
    )
    op.execute(
        "UPDATE voices SET"  # noqa: S608 - the same
        f" first_revision = COALESCE((SELECT min(l.revision) FROM fleet_log l WHERE {first}), 0),"
        f" first_at_lease_s = COALESCE((SELECT min(l.at_lease_s) FROM fleet_log l WHERE {first}), 0)"
    )


def downgrade() -> None:
    """Take them away."""
    with op.batch_alter_table("fleet_log") as log:
        for name in ("models", "was_generation", "was_models"):
            log.drop_column(name)
    with op.batch_alter_table("voices") as voices:
        for name in ("told_generation", "told_models", "first_revision", "first_at_lease_s"):
            voices.drop_column(name)
