"""What `docs/scaling.md` says of the schema: keys begin with the workspace, but of three tables."""

from sqlalchemy import ForeignKeyConstraint, Table, UniqueConstraint

from app.models import Base

FOUND_BY_ID_ALONE = {
    "workspaces",
    "api_keys",
    "session_tokens",
    "console_sessions",
    "client_secrets",
}


def keys(table: Table) -> list[list[str]]:
    """Return the columns of what must be unique, and of what refers to other tables."""
    found = [[column.name for column in table.primary_key.columns]]
    found += [
        [column.name for column in constraint.columns]
        for constraint in table.constraints
        if isinstance(constraint, (UniqueConstraint, ForeignKeyConstraint))
    ]
    found += [
        [str(getattr(part, "name", part)) for part in index.expressions]
        for index in table.indexes
        if index.unique
    ]
    return found


def test_keys_begin_with_the_workspace() -> None:
    others = {
        table.name
        for table in Base.metadata.tables.values()
        if any(columns[0] != "workspace_id" for columns in keys(table))
    }

    assert others == FOUND_BY_ID_ALONE


def test_tables_refer_to_rows_of_their_own_workspace() -> None:
    small = {"agent_platform.workspaces.id", "agent_platform.api_keys.id"}
    targets = {
        constraint.elements[0].target_fullname
        for table in Base.metadata.tables.values()
        for constraint in table.foreign_key_constraints
    }

    assert {name for name in targets if not name.endswith(".workspace_id")} == small
