"""A stand-in for Slack in a separate process, which answers at once and records the posts."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from harness.listener_process import mortal

__all__ = ["Post", "read_posts", "slack_stub"]


class Post(NamedTuple):
    """A posted message."""

    at: float
    channel: str
    text: str


@contextmanager
def slack_stub(posts: Path) -> Iterator[str]:
    """Start it, and yield the URL of its Web API; it writes to the file `posts`."""
    command = [sys.executable, "-m", "benchmarks.slack_stub", str(posts)]
    with subprocess.Popen(mortal(command), stdout=subprocess.PIPE, text=True) as process:
        try:
            yield f"http://127.0.0.1:{int(process.stdout.readline()) if process.stdout else 0}/api/"
        finally:
            process.kill()


def read_posts(path: Path) -> list[Post]:
    """Return the messages so far."""
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    return [Post(*json.loads(line)) for line in lines if line.endswith("\n")]


async def _serve(path: Path) -> None:
    with path.open("a", buffering=1) as posts:

        async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            head = await reader.readuntil(b"\r\n\r\n")
            length = next(
                int(line.partition(b":")[2])
                for line in head.lower().split(b"\r\n")
                if line.startswith(b"content-length:")
            )
            message = json.loads(await reader.readexactly(length))
            posts.write(json.dumps([time.time(), message["channel"], message["text"]]) + "\n")
            body = b'{"ok": true, "ts": "1", "channel": "C"}'
            lines = [b"HTTP/1.1 200 OK", b"Content-Type: application/json", b"Connection: close"]
            writer.write(b"\r\n".join([*lines, b"Content-Length: %d" % len(body), b"", body]))
            await writer.drain()
            writer.close()

        server = await asyncio.start_server(answer, "127.0.0.1", 0)
        sys.stdout.write(f"{server.sockets[0].getsockname()[1]}\n")
        sys.stdout.flush()
        await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(_serve(Path(sys.argv[1])))
