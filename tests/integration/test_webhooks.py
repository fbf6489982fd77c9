"""Webhooks: no redirect is followed, and nothing is sent to a private address."""

from __future__ import annotations

import socket
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest
import requests

from cdc_tasks.notify.send_errors import RefusedError
from cdc_tasks.notify.webhooks import _is_public as is_public
from cdc_tasks.notify.webhooks import checked_url, is_private_address, post

if TYPE_CHECKING:
    from collections.abc import Iterator


class Listening:
    """A server on this machine that answers with `answer` and stores what it receives."""

    def __init__(self, answer: bytes) -> None:
        self._answer = answer
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.port = self._socket.getsockname()[1]
        self.received: list[bytes] = []
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._socket.accept()
            except OSError:
                return
            with connection:
                self.received.append(connection.recv(65536))
                connection.sendall(self._answer)

    def close(self) -> None:
        self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        self._thread.join()


@contextmanager
def listening(status: str = "202 Accepted", *headers: str) -> Iterator[Listening]:
    lines = (f"HTTP/1.1 {status}", "Content-Length: 0", "Connection: close", *headers, "", "")
    server = Listening("\r\n".join(lines).encode())
    try:
        yield server
    finally:
        server.close()


def send(url: str, hosts: tuple[str, ...] = (), **options: Any) -> requests.Response:
    return post(checked_url(url, hosts, **options), {"text": "hello"}, timeout=10)


def test_a_redirect_is_returned_and_not_followed() -> None:
    with listening() as target:
        with listening("307 Moved", f"Location: http://127.0.0.1:{target.port}/") as server:
            answer = send(f"http://127.0.0.1:{server.port}/workflows/1", allow_loopback=True)
        assert answer.is_redirect
        assert target.received == []


def test_a_host_name_of_this_machine_gets_nothing() -> None:
    with listening() as server:
        with pytest.raises(requests.ConnectionError) as caught:
            send(f"https://localhost:{server.port}/workflows/1", (f"localhost:{server.port}",))
        assert is_private_address(caught.value)
        assert server.received in ([], [b""])


def test_the_check_and_the_call_use_the_same_parse() -> None:
    with listening() as server:
        url = f"https://localhost:{server.port}\\@x.webhook.office.com/workflows/1"
        with pytest.raises(RefusedError):
            send(url, ("*.webhook.office.com",))
        assert server.received == []


@pytest.mark.parametrize(
    ("address", "public"),
    [
        ("20.42.0.1", True),
        ("2603:1020::1", True),
        ("127.0.0.1", False),
        ("10.0.0.8", False),
        ("169.254.169.254", False),
        ("100.64.0.1", False),
        ("0.0.0.0", False),
        ("224.0.0.1", False),
        ("::1", False),
        ("fe80::1%eth0", False),
        ("fd00::1", False),
        ("::ffff:127.0.0.1", False),
        ("64:ff9b::7f00:1", False),
        ("64:ff9b::142a:1", True),
        ("2002:7f00:1::", False),
    ],
)
def test_only_public_addresses_are_accepted(address: str, public: bool) -> None:
    assert is_public(address) is public
