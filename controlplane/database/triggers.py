"""Rows that only grow, held to it by the database itself, and a look at whether it still does.

In: a connection. Out: the triggers that are missing, switched off or not as they were made. What always holds while
they stand: no UPDATE, DELETE, TRUNCATE, REPLACE or upsert changes a row of the tables below, whoever sends it. Who owns
the database can take the triggers away; that is what `missing_triggers` and the audit's chain are for.
"""

from __future__ import annotations

from collections.abc import Mapping

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

IMMUTABLE: Mapping[str, tuple[str, ...]] = {
    "audit": ("sequence",),
    "consents": ("tenant_id", "voice_id", "generation"),
    "licences": ("tenant_id", "voice_id", "generation"),
    "agreement_events": ("sequence",),
}
"""Tables and their primary keys."""

POSTGRESQL_FUNCTION = (
    "CREATE FUNCTION rows_only_grow() RETURNS trigger LANGUAGE plpgsql AS"
    " $$ BEGIN RAISE EXCEPTION 'the rows of % only grow', TG_TABLE_NAME; END $$"
)
_POSTGRESQL_BODY = " BEGIN RAISE EXCEPTION 'the rows of % only grow', TG_TABLE_NAME; END "
_POSTGRESQL_AUDIT_BODY = (
    " BEGIN IF TG_OP = 'INSERT' AND NEW.sequence = (SELECT COALESCE(MAX(sequence), 0) + 1 FROM audit) THEN RETURN NEW;"
    " END IF; RAISE EXCEPTION 'the audit only grows, one row at a time'; END "
)


def sqlite_triggers(table: str) -> dict[str, str]:
    """How the triggers of a table are made on SQLite, by name."""
    says = f"BEGIN SELECT RAISE(ABORT, 'the rows of {table} only grow'); END"
    same = " AND ".join(f"{column} = NEW.{column}" for column in IMMUTABLE[table])
    return {
        f"{table}_keeps_updates_out": f"CREATE TRIGGER {table}_keeps_updates_out BEFORE UPDATE ON {table} {says}",
        f"{table}_keeps_deletes_out": f"CREATE TRIGGER {table}_keeps_deletes_out BEFORE DELETE ON {table} {says}",
        # INSERT OR REPLACE fires no DELETE trigger, and may give the hidden rowid of a row that it means to replace.
        f"{table}_keeps_replaces_out": f"CREATE TRIGGER {table}_keeps_replaces_out BEFORE INSERT ON {table}"  # noqa: S608
        f" WHEN EXISTS (SELECT 1 FROM {table} WHERE ({same}) OR rowid = NEW.rowid) {says}",
    }


def postgresql_triggers(table: str) -> dict[str, str]:
    """The same on PostgreSQL; they are enabled ALWAYS, so that a session cannot ask to be spared them."""
    return {
        f"{table}_rows_only_grow": f"CREATE TRIGGER {table}_rows_only_grow BEFORE UPDATE OR DELETE ON {table}"
        " FOR EACH ROW EXECUTE FUNCTION rows_only_grow()",
        f"{table}_is_never_emptied": f"CREATE TRIGGER {table}_is_never_emptied BEFORE TRUNCATE ON {table}"
        " FOR EACH STATEMENT EXECUTE FUNCTION rows_only_grow()",
    }


async def missing_triggers(connection: AsyncConnection) -> list[str]:
    """The names of what should stand and does not: gone, switched off, or made otherwise. Sorted; empty is good."""
    if connection.dialect.name == "sqlite":
        return await _missing_on_sqlite(connection)
    return await _missing_on_postgresql(connection)


async def _missing_on_sqlite(connection: AsyncConnection) -> list[str]:
    wanted = {name: sql for table in IMMUTABLE for name, sql in sqlite_triggers(table).items()}
    found = await connection.execute(text("SELECT name, sql FROM sqlite_master WHERE type = 'trigger'"))
    standing = {row.name: row.sql for row in found}
    missing = {name for name, sql in wanted.items() if standing.get(name) != sql}
    return sorted(missing | ({"audit_no_gap"} - standing.keys()))


async def _missing_on_postgresql(connection: AsyncConnection) -> list[str]:
    wanted = {name for table in IMMUTABLE for name in postgresql_triggers(table)} | {"audit_only_grows"}
    # A trigger may stand and call a function that was replaced by one that allows everything.
    query = text(
        "SELECT t.tgname AS name, t.tgenabled = 'A' AS always, p.prosrc AS body, c.relname AS relation, t.tgqual"
        " FROM pg_trigger t JOIN pg_proc p ON p.oid = t.tgfoid JOIN pg_class c ON c.oid = t.tgrelid"
        " WHERE NOT t.tgisinternal AND c.relnamespace = current_schema()::regnamespace"
    )
    standing = {
        row.name
        for row in await connection.execute(query)
        if row.always
        and row.tgqual is None
        and row.name.startswith(f"{row.relation}_")
        and row.body == (_POSTGRESQL_AUDIT_BODY if row.name == "audit_only_grows" else _POSTGRESQL_BODY)
    }
    return sorted(wanted - standing)
