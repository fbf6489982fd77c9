"""Servers from the machine's packages, for tests: those that users run, in addition to those from wheels.

`scripts/install-test-servers` installs them on Debian and Ubuntu. Elsewhere they are looked for on the
PATH, or in the directory of the variable that the error names.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import urllib.request
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import amqp
import redis

from harness.embedded_servers import PostgresServer, ValkeyServer
from harness.server_process import ServerError, ServerProcess, free_port
from harness.waiting import wait_until

__all__ = [
    "DebianPostgresServer",
    "PrometheusServer",
    "RabbitMQServer",
    "RedisServer",
    "SentinelServer",
    "find_program",
]

_TASK_QUEUES = ("celery", "cdc_notifications", "cdc_cache", "cdc_bulk", "notifications", "cache", "bulk")
_PARTITIONS = tuple(f"{name}_{number}" for name in ("cdc_keyed", "cdc_shop_keyed") for number in range(8))
_BITS_OF_A_WAIT = 10  # one queue for each; no test waits longer than a thousand seconds
_SYSTEM_DIRECTORIES = ("/usr/lib/rabbitmq/bin", "/usr/sbin", "/usr/local/sbin", "/opt/homebrew/sbin")


class DebianPostgresServer(PostgresServer):
    """The newest installed PostgreSQL that has wal2json: 15 on Debian 12."""

    name = "postgres-debian"

    def _find_binaries(self) -> Path:
        if chosen := os.environ.get("CDC_TEST_POSTGRES_BIN"):
            return Path(chosen)
        plugins = Path("/usr/lib/postgresql").glob("*/lib/wal2json.so")
        versions = sorted((plugin.parent.parent for plugin in plugins), key=lambda path: float(path.name))
        if not versions:
            raise _missing("PostgreSQL with wal2json", "CDC_TEST_POSTGRES_BIN=/directory/of/postgres")
        return versions[-1] / "bin"

    def _prepare(self) -> None:
        super()._prepare()
        settings = subprocess.run(
            [str(self.binaries / "postgres"), "--describe-config"], capture_output=True, text=True, check=True
        )
        if "output_plugin_libraries" in settings.stdout:  # minor releases of 2026: only these may be used
            with (self.data_dir / "postgresql.conf").open("a") as configuration:
                configuration.write("output_plugin_libraries = 'pgoutput, test_decoding, wal2json'\n")


class RedisServer(ValkeyServer):
    """The machine's own `redis-server`."""

    name = "redis"

    def _find_binary(self) -> Path:
        return find_program("redis-server", "CDC_TEST_REDIS_SERVER")


class SentinelServer(ServerProcess):
    """One Sentinel that watches a master on 127.0.0.1, and decides alone that it is down."""

    name = "sentinel"

    def __init__(self, master_port: int, *, master: str = "mymaster") -> None:
        super().__init__()
        self._master = master
        self._master_port = master_port

    @property
    def url(self) -> str:
        return f"sentinel://127.0.0.1:{self.port}"

    def wait_for_replica(self) -> None:
        """Return when it knows of a replica that it could promote."""
        with self._client() as client:
            wait_until(
                lambda: any(not each["is_sdown"] for each in client.sentinel_slaves(self._master)),
                what="Sentinel to know the replica",
            )

    def _client(self) -> redis.Redis:
        return redis.Redis(port=self.port, socket_timeout=5)

    def _prepare(self) -> None:
        super()._prepare()
        lines = [
            f"port {self.port}",
            "bind 127.0.0.1",
            f"sentinel monitor {self._master} 127.0.0.1 {self._master_port} 1",
            f"sentinel down-after-milliseconds {self._master} 2000",
            f"sentinel failover-timeout {self._master} 5000",
        ]
        (self.home / "sentinel.conf").write_text("\n".join([*lines, ""]))

    def _command(self) -> list[str]:
        binary = find_program("redis-server", "CDC_TEST_REDIS_SERVER")
        return [str(binary), str(self.home / "sentinel.conf"), "--sentinel"]

    def _is_ready(self) -> bool:
        try:
            with self._client() as client:
                return bool(client.ping())
        except redis.ConnectionError:
            return False


class PrometheusServer(ServerProcess):
    """The machine's own Prometheus: scrapes the targets every second, with the rules of a file."""

    name = "prometheus"

    def __init__(self, *, rules: Path, targets: Sequence[str], job: str = "cdc-tasks") -> None:
        """`targets` are addresses as `127.0.0.1:9187`."""
        super().__init__()
        self._rules = rules
        self._targets = targets
        self._job = job

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def firing(self) -> set[str]:
        """The names of the alerts that fire now."""
        found = self.get("/api/v1/alerts")["alerts"]
        return {each["labels"]["alertname"] for each in found if each["state"] == "firing"}

    def query(self, expression: str) -> list[Any]:
        """Return the current value of an expression. Raise HTTPError if it is not valid."""
        found: list[Any] = self.get(f"/api/v1/query?{urlencode({'query': expression})}")["result"]
        return found

    def get(self, path: str) -> Any:
        """Return the data of an API response."""
        with urllib.request.urlopen(f"{self.url}{path}", timeout=10) as answer:  # noqa: S310 - our own
            return json.load(answer)["data"]

    def _prepare(self) -> None:
        super()._prepare()
        every = {"scrape_interval": "1s", "evaluation_interval": "1s"}
        job = {"job_name": self._job, "static_configs": [{"targets": list(self._targets)}]}
        settings = {"global": every, "rule_files": [str(self._rules)], "scrape_configs": [job]}
        (self.home / "prometheus.yml").write_text(json.dumps(settings))  # YAML, too

    def _command(self) -> list[str]:
        return [
            str(find_program("prometheus", "CDC_TEST_PROMETHEUS")),
            f"--config.file={self.home / 'prometheus.yml'}",
            f"--storage.tsdb.path={self.data_dir}",
            f"--web.listen-address=127.0.0.1:{self.port}",
        ]

    def _is_ready(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.url}/-/ready", timeout=5) as answer:  # noqa: S310 - the same
                return bool(answer.status == 200)
        except OSError:
            return False


class RabbitMQServer(ServerProcess):
    """RabbitMQ as a separate node: own name, own ports, own port mapper, nothing from `/etc/rabbitmq`."""

    name = "rabbitmq"

    def __init__(self, *, port: int | None = None) -> None:
        super().__init__(port=port)
        self._distribution_port = free_port()
        self._port_mapper = _ErlangPortMapper()

    @property
    def url(self) -> str:
        """The URL of the virtual host `/`, as `guest`."""
        return f"amqp://guest:guest@127.0.0.1:{self.port}//"

    def _prepare(self) -> None:
        super()._prepare()
        (self.home / "enabled_plugins").write_text("[].\n")
        (self.home / "rabbitmq.conf").write_text(
            f"listeners.tcp.1 = 127.0.0.1:{self.port}\ndisk_free_limit.absolute = 50MB\n"
        )

    def _environment(self) -> dict[str, str]:
        return {
            **os.environ,
            "HOME": str(self.home),  # the Erlang cookie lives there
            "ERL_EPMD_ADDRESS": "127.0.0.1",
            "ERL_EPMD_PORT": str(self._port_mapper.port),
            "RABBITMQ_CONF_ENV_FILE": "/dev/null",
            "RABBITMQ_CONFIG_FILE": str(self.home / "rabbitmq.conf"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(self.home / "enabled_plugins"),
            "RABBITMQ_MNESIA_BASE": str(self.data_dir),
            "RABBITMQ_LOG_BASE": str(self.home),
            "RABBITMQ_LOGS": "-",
            "RABBITMQ_PID_FILE": str(self.home / "pid"),
            "RABBITMQ_NODENAME": f"cdc{self._distribution_port}@localhost",
            "RABBITMQ_DIST_PORT": str(self._distribution_port),
            # The script then becomes the server instead of its parent.
            "RUNNING_UNDER_SYSTEMD": "1",
        }

    def _command(self) -> list[str]:
        return [str(find_program("rabbitmq-server", "CDC_TEST_RABBITMQ_SERVER"))]

    def _is_ready(self) -> bool:
        try:
            with amqp.Connection(host=f"127.0.0.1:{self.port}", connect_timeout=2):
                return True
        except (OSError, amqp.exceptions.AMQPError):
            return False

    def forget_tasks(self) -> None:
        """Purge the unacknowledged messages of killed workers of earlier tests, and their retries."""
        waits = [f"celery_delayed_{bit}" for bit in range(_BITS_OF_A_WAIT)]
        with amqp.Connection(host=f"127.0.0.1:{self.port}") as connection:
            for queue in (*waits, *_TASK_QUEUES, *_PARTITIONS):
                channel: Any
                with suppress(amqp.exceptions.NotFound), connection.channel() as channel:  # type: ignore[attr-defined]  # the stubs lack it
                    _wait_until_unused(channel, queue)
                    channel.queue_purge(queue)

    def control(self, *arguments: str) -> str:
        """Run `rabbitmqctl` on this node, and return its output."""
        command = [str(find_program("rabbitmqctl", "CDC_TEST_RABBITMQCTL")), "--quiet", *arguments]
        environment = self._environment()
        return subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout

    def start(self) -> RabbitMQServer:
        self._port_mapper.start()
        return super().start()

    def close(self) -> None:
        super().close()
        self._port_mapper.close()


class _ErlangPortMapper(ServerProcess):
    """An `epmd` of our own: the node would start one that outlives it."""

    name = "epmd"

    @property
    def url(self) -> str:
        return f"epmd://127.0.0.1:{self.port}"

    def _command(self) -> list[str]:
        epmd = find_program("epmd", "CDC_TEST_EPMD")
        return [str(epmd), "-port", str(self.port), "-address", "127.0.0.1"]

    def _is_ready(self) -> bool:
        try:
            socket.create_connection(("127.0.0.1", self.port), timeout=2).close()
        except OSError:
            return False
        return True


def find_program(program: str, variable: str) -> Path:
    """Return the path of a server's program: from `variable`, or from the system's directories."""
    search = os.pathsep.join([*_SYSTEM_DIRECTORIES, os.environ.get("PATH", "")])
    found = os.environ.get(variable) or shutil.which(program, path=search)
    if not found:
        raise _missing(program, f"{variable}=/path/of/{program}")
    return Path(found)


def _missing(server: str, variable: str) -> ServerError:
    return ServerError(
        f"this test needs {server}, which is not on this machine",
        hint=f"run scripts/install-test-servers (Debian, Ubuntu), or set {variable}",
    )


def _wait_until_unused(channel: Any, queue: str) -> None:
    """Return when the queue has no consumers any more: then all its messages can be purged."""
    wait_until(
        lambda: channel.queue_declare(queue, passive=True).consumer_count == 0,
        what=f"the consumers of {queue} to be gone",
    )
