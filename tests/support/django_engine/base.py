from __future__ import annotations

from typing import Any

from django.db.backends.postgresql.base import DatabaseWrapper as PostgresWrapper

__all__ = ["DatabaseWrapper"]


class DatabaseWrapper(PostgresWrapper):
    def get_connection_params(self) -> dict[str, Any]:
        return {**super().get_connection_params(), "password": "fresh"}
