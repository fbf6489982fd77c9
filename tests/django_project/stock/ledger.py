"""Triggers that note each change of a table."""

from __future__ import annotations

from typing import Any

_FUNCTION = """
CREATE OR REPLACE FUNCTION note_change() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  IF TG_OP = 'DELETE' THEN
    INSERT INTO ledger (table_name, event, row_id, version) VALUES (TG_TABLE_NAME, 'delete', OLD.id, OLD.version);
  ELSE
    INSERT INTO ledger (table_name, event, row_id, version) VALUES (TG_TABLE_NAME, lower(TG_OP), NEW.id, NEW.version);
  END IF;
  RETURN NULL;
END $$
"""
_TRIGGER = "CREATE TRIGGER note AFTER INSERT OR UPDATE OR DELETE ON {table} FOR EACH ROW EXECUTE FUNCTION note_change()"
_OF_MYSQL = (
    "CREATE TRIGGER {table}_{event} AFTER {event} ON {table} FOR EACH ROW INSERT INTO ledger"
    " (table_name, event, row_id, version) VALUES ('{table}', LOWER('{event}'), {row}.id, {row}.version)"
)


def note_changes(editor: Any, table: str) -> None:
    """Let the database note what happens to this table's rows from now on, also under another name."""
    statements = [_FUNCTION, _TRIGGER.format(table=table)]
    if editor.connection.vendor == "mysql":
        rows = {"INSERT": "NEW", "UPDATE": "NEW", "DELETE": "OLD"}
        statements = [_OF_MYSQL.format(table=table, event=event, row=row) for event, row in rows.items()]
    with editor.connection.cursor() as cursor:
        for statement in statements:
            cursor.execute(statement)
