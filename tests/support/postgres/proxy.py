"""A proxy for PostgreSQL's protocol: simulates another language, a connection pooler, or unreadable rows."""

from __future__ import annotations

import codecs
import contextlib
import socket
import struct
import threading
from typing import TYPE_CHECKING, BinaryIO, Self
from urllib.parse import urlsplit, urlunsplit

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

__all__ = ["PostgresProxy"]

_ENCRYPTION_REQUESTS = {80877103, 80877104}  # TLS, GSS
_CANCEL = 80877102
_TRANSLATED = b"SMDHW"  # severity, message, detail, hint, where: the fields in the server's language


class PostgresProxy:
    """A proxy for a server on 127.0.0.1, without TLS."""

    def __init__(
        self,
        port: int,
        *,
        translates: bool = False,
        drops: Collection[str] = (),
        refuses: Collection[str] = (),
        errors: Mapping[bytes, tuple[str, str]] | None = None,
        replaces: Mapping[bytes, bytes] | None = None,
    ) -> None:
        """`translates` makes the errors' messages unreadable; `drops` and `refuses` name start-up parameters, as
        PgBouncer's `ignore_startup_parameters` does; `errors` has SQLSTATE and message to send instead of copied
        data that contains the key; `replaces` has bytes of the same length to replace within copied data.
        """
        self._target = port
        self._translates = translates
        self._drops = drops
        self._refuses = refuses
        self._errors = errors or {}
        self._replaces = replaces or {}
        self._listening = socket.create_server(("127.0.0.1", 0))
        self._sockets: set[socket.socket] = set()
        self.port: int = self._listening.getsockname()[1]

    def url(self, url: str) -> str:
        """Return a URL of the server, changed to go through this proxy."""
        parts = urlsplit(url)
        host = parts.netloc.replace(f":{self._target}", f":{self.port}")
        return urlunsplit(parts._replace(netloc=host))

    def __enter__(self) -> Self:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        for each in [self._listening, *self._sockets]:
            _shut(each)
        self._listening.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listening.accept()
                threading.Thread(target=self._serve, args=[client], daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with client, contextlib.suppress(OSError), client.makefile("rb") as reader:
            startup = _read_startup(client, reader)
            refused = [name for name in self._refuses if name in startup]
            if refused:
                client.sendall(_error("08P01", f"unsupported startup parameter: {refused[0]}"))
                return
            with socket.create_connection(("127.0.0.1", self._target)) as server:
                self._sockets |= {client, server}
                server.sendall(_startup({k: v for k, v in startup.items() if k not in self._drops}))
                threading.Thread(target=self._forward, args=[client, server], daemon=True).start()
                self._answer(server, client)

    def _forward(self, client: socket.socket, server: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := client.recv(65536):
                server.sendall(data)
        _shut(server)

    def _answer(self, server: socket.socket, client: socket.socket) -> None:
        with server.makefile("rb") as reader:
            while len(head := reader.read(5)) == 5:
                body = reader.read(struct.unpack(">I", head[1:])[0] - 4)
                kind = head[:1]
                if kind == b"d" and (found := [each for each in self._errors if each in body]):
                    client.sendall(_error(*self._errors[found[0]]))
                    break
                if kind == b"d":
                    for old, new in self._replaces.items():
                        body = body.replace(old, new)
                client.sendall(_translate(kind, body) if self._translates and kind in b"EN" else head + body)
        _shut(client)


def _read_startup(client: socket.socket, reader: BinaryIO) -> dict[str, str]:
    while True:
        (length, code) = struct.unpack(">II", reader.read(8))
        rest = reader.read(length - 8)
        if code in _ENCRYPTION_REQUESTS:
            client.sendall(b"N")
        elif code == _CANCEL:
            raise OSError("a cancellation")
        else:
            words = rest.decode().split("\0")
            return dict(zip(words[::2], words[1::2], strict=False))


def _startup(parameters: Mapping[str, str]) -> bytes:
    body = struct.pack(">I", 196608)
    body += b"".join(f"{name}\0{value}\0".encode() for name, value in parameters.items() if name) + b"\0"
    return struct.pack(">I", len(body) + 4) + body


def _error(sqlstate: str, message: str) -> bytes:
    fields = (("S", "ERROR"), ("V", "ERROR"), ("C", sqlstate), ("M", message))
    return _message(b"E", b"".join(f"{code}{text}\0".encode() for code, text in fields) + b"\0")


def _message(kind: bytes, body: bytes) -> bytes:
    return kind + struct.pack(">I", len(body) + 4) + body


def _translate(kind: bytes, body: bytes) -> bytes:
    """Return the message with each letter of its text replaced."""
    fields = [
        field[:1] + _exchanged(field[1:]) if field[0] in _TRANSLATED else field
        for field in body.split(b"\0")
        if field
    ]
    return _message(kind, b"".join(field + b"\0" for field in fields) + b"\0")


def _exchanged(words: bytes) -> bytes:
    """Return other words, in Latin-1, like those of a server whose locale is not UTF-8."""
    return f"»{codecs.encode(words.decode(), 'rot13')}«".encode("latin-1")


def _shut(each: socket.socket) -> None:
    with contextlib.suppress(OSError):
        each.shutdown(socket.SHUT_RDWR)
