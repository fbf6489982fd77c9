"""The sample help desk's tables: one SQL file for each kind of database. Each may be run any number of times."""

from __future__ import annotations

from importlib.resources import files

from sqlalchemy import Engine

__all__ = ["create", "sql"]

_FILES = {"postgresql": "postgresql.sql", "mysql": "mysql.sql", "mariadb": "mysql.sql"}


def sql(dialect: str) -> str:
    """Return the SQL for `postgresql`, `mysql` or `mariadb`."""
    return files(__package__).joinpath(_FILES[dialect]).read_text(encoding="utf-8")


def create(engine: Engine) -> None:
    """Create the tables and rows that this database lacks."""
    with engine.begin() as connection:
        for statement in _statements(sql(engine.dialect.name)):
            connection.exec_driver_sql(statement)


def _statements(text: str) -> list[str]:
    """Split at semicolons, after removing comments; our own files have no semicolon inside a literal."""
    code = "\n".join(line.split("--")[0] for line in text.splitlines())
    return [statement.strip() for statement in code.split(";") if statement.strip()]
