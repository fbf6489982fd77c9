"""Serves the console until it is stopped."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

import structlog
import uvicorn

from listener.console.pages import make_console
from listener.console.settings import ConsoleRefusedError

if TYPE_CHECKING:
    from listener.console.settings import Address, ConsoleSettings
    from listener.daemon.settings import ListenerSettings

__all__ = ["serve"]

log = structlog.get_logger()


def serve(settings: ListenerSettings, console: ConsoleSettings) -> None:
    """Serve it until SIGTERM or Ctrl-C. Raise ConsoleRefusedError if the address cannot be used."""
    address = console.address
    app = make_console(settings, console)
    with _bound(address) as listening:
        log.info("console_ready", url=address.url)
        config = uvicorn.Config(
            app,
            log_config=None,
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=5,
            proxy_headers=False,
        )
        uvicorn.Server(config).run(sockets=[listening])


def _bound(address: Address) -> socket.socket:
    try:
        return socket.create_server(
            (address.host, address.port),
            family=socket.AF_INET6 if ":" in address.host else socket.AF_INET,
            reuse_port=False,
        )
    except OSError as error:
        raise ConsoleRefusedError(
            f"CDC_CONSOLE_ADDRESS={address.host}:{address.port} cannot be used: {error.strerror or error}.",
            hint="Another console may run there already. Choose another port: --address 127.0.0.1:5557",
            code="console_address",
        ) from error
