"""The migrations: up, down and up again, on each database, with what was stored before them."""

from __future__ import annotations

from pathlib import Path

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, inspect, text
from sqlalchemy.ext.asyncio import create_async_engine

import controlplane.database as package
from controlplane.database.schema import metadata
from controlplane.database.triggers import missing_triggers

SCRIPTS = Path(package.__file__).parent / "migrations"
SEED = (
    "INSERT INTO tenants (tenant_id, created_at_s) VALUES ('t', 1)",
    "INSERT INTO voices (tenant_id, voice_id, generation, state, state_reason, label_ciphertext, net_speech_ms, model,"
    " revision, created_at_s, updated_at_s) VALUES ('t', 'v', 1, 'ready', '', NULL, 5, 'm', 1, 1, 1)",
    "INSERT INTO consents (tenant_id, voice_id, generation, ciphertext, created_at_s) VALUES ('t', 'v', 1, {blob}, 1)",
    "INSERT INTO api_keys (key_id, tenant_id, key_hash, scopes, created_at_s) VALUES ('k', 't', {blob}, 'admin', 1)",
)


def configured(connection: Connection) -> Config:
    config = Config()
    config.set_main_option("script_location", str(SCRIPTS))
    config.attributes["connection"] = connection
    return config


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite+aiosqlite:///{tmp_path}/speakerd.db"
    found: str = request.getfixturevalue("postgresql_url")
    return found


async def test_migrations_go_up_with_what_is_stored_down_to_the_first_and_up_again(url: str) -> None:
    engine = create_async_engine(url)

    def run(connection: Connection) -> None:
        config = configured(connection)
        blob = "X'00'" if connection.dialect.name == "sqlite" else "'\\x00'"
        command.upgrade(config, "0001")
        first = set(inspect(connection).get_table_names())
        for statement in SEED:
            connection.execute(text(statement.format(blob=blob)))
        for _ in range(2):
            command.upgrade(config, "head")
            assert compare_metadata(MigrationContext.configure(connection), metadata) == []
            scope, label_index = connection.execute(text("SELECT scope, label_index FROM voices")).one()
            assert (scope, label_index) == ("tenant", None)
            assert connection.execute(text("SELECT count(*) FROM consents")).scalar_one() == 1
            command.downgrade(config, "0001")
            assert set(inspect(connection).get_table_names()) == first
            assert connection.execute(text("SELECT count(*) FROM consents")).scalar_one() == 1
        command.upgrade(config, "head")

    try:
        async with engine.begin() as connection:
            await connection.run_sync(run)
        async with engine.connect() as connection:
            assert await missing_triggers(connection) == []
    finally:
        await engine.dispose()


def test_the_migrations_are_one_chain() -> None:
    script = ScriptDirectory(str(SCRIPTS))
    assert len(script.get_heads()) == 1
    assert [step.revision for step in script.walk_revisions()][-1] == "0001"
