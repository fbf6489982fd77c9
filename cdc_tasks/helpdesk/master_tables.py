"""The help desk's tables in the master cache."""

from __future__ import annotations

from cdc_tasks.master_cache import MasterCache

__all__: list[str] = []

for _table in ("departments", "priorities", "roles", "statuses"):
    MasterCache.register(_table, key=f"master:{_table}")
MasterCache.register("statuses", key="master:statuses:open", keep=lambda row: not row.get("is_closed"))
