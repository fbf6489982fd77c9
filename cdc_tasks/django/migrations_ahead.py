"""How pending migrations would affect tables, derived from their operations before they run."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Final

from django.db import router
from django.db.migrations.executor import MigrationExecutor
from django.db.migrations.operations import (
    RenameField,
    RenameModel,
    RunPython,
    RunSQL,
    SeparateDatabaseAndState,
)
from django.db.migrations.state import ProjectState

from cdc_tasks.django.database import Table, home_schema, named_table, table_of

if TYPE_CHECKING:
    from django.db.backends.base.base import BaseDatabaseWrapper
    from django.db.migrations.migration import Migration
    from django.db.migrations.operations.base import Operation

__all__ = ["Effect", "EffectKind", "effects_of_pending_migrations"]


class EffectKind(StrEnum):
    """The effect of an operation on a table, as far as it concerns the listener."""

    NEW_TABLE = "new table"
    FILLED_TABLE = "new table that is filled"  # by a later operation of the same run
    NO_PRIMARY_KEY = "new table without a primary key"
    RENAMED_TABLE = "renamed table"
    DROPPED_TABLE = "dropped table"
    RENAMED_COLUMN = "renamed column"
    DROPPED_COLUMN = "dropped column"
    ALTERED_TYPE = "altered type"
    OWN_SQL = "own SQL"


@dataclass(frozen=True, slots=True, kw_only=True)
class Effect:
    """One effect of a migration."""

    kind: EffectKind
    migration: str  # orders.0003_rename
    table: Table  # under its name before the operation
    column: str = ""
    new: str = ""  # name or type afterwards, or the SQL statement
    renamed_to: Table | None = None
    old_type: str = ""


def effects_of_pending_migrations(connection: BaseDatabaseWrapper) -> list[Effect]:
    """Return how a full `migrate` would affect existing tables, and which tables it would create.

    Empty if no migration is applied yet: such a database has no watched tables.
    """
    executor = MigrationExecutor(connection)
    applied = executor.loader.applied_migrations
    targets = executor.loader.graph.leaf_nodes()
    if not applied or not executor.migration_plan(targets):
        return []
    state = ProjectState(real_apps=executor.loader.unmigrated_apps)
    walk = _Walk(connection)
    for migration, _ in executor.migration_plan(targets, clean_start=True):
        if (migration.app_label, migration.name) in applied:
            migration.mutate_state(state, preserve=False)
        else:
            walk.take(migration, state)
    return walk.effects


# --- A state's tables -----------------------------------------------------------------------------------

_Key = tuple[str, ...]  # (app, model), or (app, model, field) of the table behind a ManyToManyField


@dataclass(frozen=True, slots=True)
class _Described:
    table: Table
    columns: Mapping[str, tuple[str, str]]  # the field's name, or a number, to the column's name and type


def _tables(state: ProjectState, connection: BaseDatabaseWrapper) -> dict[_Key, _Described]:
    found: dict[_Key, _Described] = {}
    for model in state.apps.get_models():
        key, options = (model._meta.app_label, str(model._meta.model_name)), model._meta
        if not options.can_migrate(connection) or not router.allow_migrate_model(connection.alias, model):
            continue
        columns = {each.name: _column(each, connection) for each in options.local_concrete_fields}
        found[key] = _Described(table_of(model, connection), columns)
        for many in options.local_many_to_many:
            through: Any = many.remote_field.through
            if through._meta.auto_created:
                # By number: the names of these fields follow the models' names.
                fields = enumerate(through._meta.local_concrete_fields)
                numbered = {str(number): _column(each, connection) for number, each in fields}
                found[*key, many.name] = _Described(table_of(through, connection), numbered)
    return found


def _column(column: Any, connection: BaseDatabaseWrapper) -> tuple[str, str]:
    return column.column, column.db_type(connection) or ""


# --- From operation to operation ------------------------------------------------------------------------


@dataclass
class _Walk:
    """Goes through pending migrations, and collects the effects of their operations."""

    connection: BaseDatabaseWrapper
    effects: list[Effect] = field(default_factory=list)
    _made: set[Table] = field(default_factory=set)  # by a pending migration: not watched so far

    def take(self, migration: Migration, state: ProjectState) -> None:
        """Collect the effects of a migration, and advance `state` to its end."""
        name = f"{migration.app_label}.{migration.name}"
        for operation in migration.operations:
            self._take(operation, migration.app_label, name, state)

    def _take(self, operation: Operation, app: str, name: str, state: ProjectState) -> None:
        if isinstance(operation, SeparateDatabaseAndState):
            scratch = state.clone()
            for each in operation.database_operations:
                self._take(each, app, name, scratch)
            operation.state_forwards(app, state)
        elif isinstance(operation, RunSQL | RunPython):
            self._note(_of_sql(operation, name, home_schema(self.connection)))
            self._note_filling(app, name)
            operation.state_forwards(app, state)
        else:
            before = _tables(state, self.connection)
            operation.state_forwards(app, state)
            self._note(_differences(before, _tables(state, self.connection), operation, app, name))

    def _note(self, found: Iterable[Effect]) -> None:
        for each in found:
            if each.table in self._made:
                if each.renamed_to is not None:
                    self._made.add(each.renamed_to)
                continue
            if each.kind in {EffectKind.NEW_TABLE, EffectKind.NO_PRIMARY_KEY}:
                self._made.add(each.table)
            self.effects.append(each)

    def _note_filling(self, app: str, name: str) -> None:
        """Note that a data migration may fill the new tables of its app; only its code knows which."""
        for number, each in enumerate(self.effects):
            if each.kind is EffectKind.NEW_TABLE and each.migration.startswith(f"{app}."):
                self.effects[number] = Effect(
                    kind=EffectKind.FILLED_TABLE, migration=each.migration, table=each.table, new=name
                )


def _differences(
    before: Mapping[_Key, _Described],
    after: Mapping[_Key, _Described],
    operation: Operation,
    app: str,
    migration: str,
) -> Iterator[Effect]:
    """Yield the differences between two states, except names that changed only in the models."""
    moved = {key: _renamed(key, operation, app) for key in before}
    for key, old in before.items():
        new = after.get(moved[key])
        if new is None:
            yield Effect(kind=EffectKind.DROPPED_TABLE, migration=migration, table=old.table)
            continue
        if new.table != old.table:
            yield Effect(
                kind=EffectKind.RENAMED_TABLE, migration=migration, table=old.table, renamed_to=new.table
            )
        names = _renamed_fields(key, old, operation, app)
        yield from _column_differences(old, new, names, migration)
    for key in after.keys() - set(moved.values()):
        yield Effect(kind=EffectKind.NEW_TABLE, migration=migration, table=after[key].table)


def _column_differences(
    old: _Described, new: _Described, names: Mapping[str, str], migration: str
) -> Iterator[Effect]:
    for name, (column, kind) in old.columns.items():
        found = new.columns.get(names[name])
        if found is None:
            yield Effect(kind=EffectKind.DROPPED_COLUMN, migration=migration, table=old.table, column=column)
            continue
        if found[0] != column:
            yield Effect(
                kind=EffectKind.RENAMED_COLUMN,
                migration=migration,
                table=old.table,
                column=column,
                new=found[0],
            )
        if _as_sent(found[1]) != _as_sent(kind):
            yield Effect(
                kind=EffectKind.ALTERED_TYPE,
                migration=migration,
                table=old.table,
                column=column,
                new=found[1],
                old_type=kind,
            )


def _renamed(key: _Key, operation: Operation, app: str) -> _Key:
    """Return the key after the operation."""
    if isinstance(operation, RenameModel) and key[:2] == (app, operation.old_name_lower):
        return (app, operation.new_name_lower, *key[2:])
    if (
        isinstance(operation, RenameField)
        and key[:2] == (app, operation.model_name_lower)
        and key[2:] == (operation.old_name,)
    ):
        return (*key[:2], operation.new_name)
    return key


def _renamed_fields(key: _Key, old: _Described, operation: Operation, app: str) -> dict[str, str]:
    """Return the fields' names after the operation, by those before."""
    names = {name: name for name in old.columns}
    if isinstance(operation, RenameField) and key == (app, operation.model_name_lower):
        names[operation.old_name] = operation.new_name
    return names


_INTEGERS: Final = ("smallint", "integer", "bigint", "int", "serial", "bigserial", "smallserial", "tinyint")
_TEXTS: Final = ("varchar", "text", "longtext", "char", "character varying", "citext")
_ALIKE: Final = dict.fromkeys(_INTEGERS, "integer") | dict.fromkeys(_TEXTS, "text")


def _as_sent(kind: str) -> str:
    """Return a type without the parts that do not affect a task's argument: length, precision, integer size."""
    base = re.sub(r"\(.*?\)", "", kind.lower().split(" generated ")[0].split(" collate ")[0])
    base = re.sub(r"\b(unsigned|auto_increment|not null)\b", "", base).strip()
    return "boolean" if kind.lower() in {"bool", "tinyint(1)"} else _ALIKE.get(base, base)


# --- The project's own SQL ------------------------------------------------------------------------------

_DEFINITION: Final = re.compile(
    r"\b(?P<verb>CREATE|ALTER|DROP|TRUNCATE|RENAME)\s+(?:UNLOGGED\s+)?TABLE\s+(?:IF\s+(?:NOT\s+)?EXISTS\s+)?(?:ONLY\s+)?"
    r"(?P<table>[\w.\"`$]+)",
    re.IGNORECASE,
)
_COMMENT: Final = re.compile(r"--[^\n]*|/\*.*?\*/", re.DOTALL)


def _of_sql(operation: RunSQL | RunPython, migration: str, schema: str) -> Iterator[Effect]:
    for statement in _statements(operation):
        for found in _DEFINITION.finditer(statement):
            table = named_table(found["table"], schema)
            if found["verb"].upper() != "CREATE":
                yield Effect(
                    kind=EffectKind.OWN_SQL, migration=migration, table=table, new=" ".join(found[0].split())
                )
                continue
            has_key = "PRIMARY KEY" in " ".join(statement.upper().split())
            kind = EffectKind.NEW_TABLE if has_key else EffectKind.NO_PRIMARY_KEY
            yield Effect(kind=kind, migration=migration, table=table)


def _statements(operation: RunSQL | RunPython) -> Iterator[str]:
    if isinstance(operation, RunPython):
        return
    texts = [operation.sql] if isinstance(operation.sql, str) else list(operation.sql or ())
    for each in texts:
        text = each if isinstance(each, str) else each[0]
        yield from _COMMENT.sub(" ", text).split(";")
