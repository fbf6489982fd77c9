"""Whether a listener on a binlog could find its place again when the broker has lost its data."""

from __future__ import annotations

from collections.abc import Iterator

from cdc_tasks.errors import CDCError
from listener.core.findings import Finding, State
from listener.publish.bookmark import bookmark_key, read_bookmark
from listener.publish.check_broker import redis_info
from listener.publish.redis.connection import RedisConnection

__all__ = ["check_bookmark"]


def check_bookmark(
    store: RedisConnection, cache_url: str, *, name: str, checkpoint: str | None
) -> Iterator[Finding]:
    """Yield what there is to say; `store` is where the `checkpoint` of CDC_NAME is.

    Nothing where one of the two is away: that is told elsewhere.
    """
    try:
        bookmark = read_bookmark(cache_url, name)
        infos = [redis_info(store), redis_info(RedisConnection.of_cache(cache_url))]
    except CDCError:
        return
    if bookmark and checkpoint is None:
        yield Finding(
            what="broker's data",
            state=State.WARNING,
            found=f"there is no checkpoint, though the listener has been at {bookmark}: the broker has lost its data",
            hint="The listener goes on there. If this is to be a first start: redis-cli -u CACHE_URL DEL "
            f"{bookmark_key(name)}",
        )
    is_one = len({info.get("run_id") for info in infos}) == 1
    if is_one and infos[0].get("aof_enabled") == "0":
        yield Finding(
            what="bookmark",
            state=State.WARNING,
            found="checkpoint and bookmark are in one Redis without an append-only file: if it forgets them while no "
            "listener runs, the next one begins with what is committed from then on",
            hint="redis-cli CONFIG SET appendonly yes   and: redis-cli CONFIG REWRITE   or another CACHE_URL",
        )
    elif infos[0]:
        yield Finding(what="bookmark", found="outlives a broker that forgets")
