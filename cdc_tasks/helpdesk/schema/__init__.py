"""The sample help desk's tables: one SQL file a database, which may be run again and again."""

from __future__ import annotations

from importlib.resources import files

from sqlalchemy import Engine

__all__ = ["create", "sql"]

_FILES = {"postgresql": "postgresql.sql", "mysql": "mysql.sql", "mariadb": "mysql.sql"}


def sql(dialect: str) -> str:
    """Return the file for `postgresql`, `mysql` or `mariadb`."""
    return files(__package__).joinpath(_FILES[dialect]).read_text(encoding="utf-8")


def create(engine: Engine) -> None:
    """Make what is missing on this database."""
    with engine.begin() as connection:
        for statement in _statements(sql(engine.dialect.name)):
            connection.exec_driver_sql(statement)


def _statements(text: str) -> list[str]:
    """Split at semicolons: our own files have none inside a literal, and comments are left out first."""
    code = "\n".join(line.split("--")[0] for line in text.splitlines())
    return [statement.strip() for statement in code.split(";") if statement.strip()]
