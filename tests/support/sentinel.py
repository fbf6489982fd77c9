"""A broker behind Sentinel, and its kinds of failover."""

from __future__ import annotations

import os
import signal
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, Self

import redis
from celery import Celery

from harness.embedded_servers import ValkeyServer
from harness.machine_servers import SentinelServer
from harness.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = ["SentinelBroker"]


class SentinelBroker:
    """A master with replicas, and the Sentinel that names the master to Celery (`behind_sentinel`)."""

    def __init__(
        self, *, replicas: int = 1, server: type[ValkeyServer] = ValkeyServer, arguments: Sequence[str] = ()
    ) -> None:
        """`arguments` are options of each server."""
        self._arguments = ["--repl-diskless-sync-delay", "0", *arguments]
        self.master = server(arguments=self._arguments)
        self._server = server
        self._count = replicas

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            stack.enter_context(self.master)
            of_master = [*self._arguments, "--replicaof", "127.0.0.1", str(self.master.port)]
            self.replicas = [
                stack.enter_context(self._server(arguments=of_master)) for _ in range(self._count)
            ]
            self.sentinel = stack.enter_context(SentinelServer(self.master.port))
            self._hurry()
            wait_until(self._knows_replicas, timeout=30, what="Sentinel to know the replicas")
            stack.callback(self._let_all_go)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    @property
    def environment(self) -> Mapping[str, str]:
        """The variables for workers and listeners."""
        return {
            "CELERY_BROKER_URL": f"{self.sentinel.url}/0",
            "CELERY_CONFIG_MODULE": "tests.support.celery_settings.behind_sentinel",
        }

    @property
    def client(self) -> redis.Redis:
        """A client of the current master, according to Sentinel."""
        return redis.Redis(port=self._master_port(), socket_timeout=5)

    def send(self, task: str, *arguments: Any, queue: str = "celery") -> None:
        """Send a task to the master that Sentinel names, by the task's name."""
        with Celery("tests", broker=f"{self.sentinel.url}/0", set_as_current=False) as app:
            app.conf.broker_transport_options = {"master_name": "mymaster"}
            with (
                app.connection_for_write() as connection
            ):  # not a connection that a pool has kept from before a failover
                app.send_task(task, arguments, queue=queue, connection=connection)

    def wait_for_copies(self) -> None:
        """Return when the replicas have everything that the first master has."""
        with redis.Redis.from_url(self.master.url) as client:
            client.set("wait-for-copies", "1", px=1)  # WAIT covers this client's writes, and all earlier ones
            wait_until(lambda: client.wait(self._count, 1000) == self._count, timeout=30, what="the copies")

    def hold_back(self, *held: ValkeyServer) -> None:
        """Pause replicas, so that later writes to the first master are not even sent to them."""
        for replica in held:
            os.kill(replica.pid, signal.SIGSTOP)
        others = {each.port for each in self.replicas if each not in held}
        with redis.Redis.from_url(self.master.url) as client:
            client.client_kill_filter(_type="replica")  # the others reconnect
            wait_until(lambda: _online(client) == others, what="the replicas to be cut off")

    def let_go(self, *held: ValkeyServer) -> None:
        """Resume them."""
        for replica in held:
            os.kill(replica.pid, signal.SIGCONT)

    def fail_over(self) -> None:
        """Make Sentinel promote a replica; the old master becomes its replica."""
        with self._sentinel() as sentinel:
            sentinel.execute_command("SENTINEL", "FAILOVER", "mymaster")

    def kill_master(self) -> None:
        """SIGKILL the first master."""
        self.master.kill()

    def revive_master(self) -> None:
        """Restart the killed first master, empty: Sentinel makes it a replica of the new one."""
        self.master.start()

    def pause_master(self) -> None:
        """Make the first master hang: its connections stay open and silent."""
        os.kill(self.master.pid, signal.SIGSTOP)

    def wait_for_new_master(self) -> None:
        """Return when Sentinel names a replica as the master."""
        wait_until(self.has_new_master, timeout=40, what="another master")

    def has_new_master(self) -> bool:
        return self._master_port() in {each.port for each in self.replicas}

    def _master_port(self) -> int:
        with self._sentinel() as sentinel:
            # The same query as Celery's client: SENTINEL GET-MASTER-ADDR-BY-NAME names the next one a moment earlier.
            return int(sentinel.sentinel_masters()["mymaster"]["port"])

    def _let_all_go(self) -> None:
        for server in (self.master, *self.replicas):
            if server.running:
                os.kill(server.pid, signal.SIGCONT)  # a paused process does not end on SIGTERM

    def _sentinel(self) -> redis.Redis:
        return redis.Redis(port=self.sentinel.port, socket_timeout=5)

    def _hurry(self) -> None:
        """Make it poll twice a second, so that it reconfigures an old master soon, not after ten seconds."""
        with self._sentinel() as sentinel:
            sentinel.execute_command("SENTINEL", "DEBUG", "info-period", 500, "publish-period", 300)

    def _knows_replicas(self) -> bool:
        with self._sentinel() as sentinel:
            found: list[Mapping[str, Any]] = sentinel.sentinel_slaves("mymaster")
            return sum(not each["is_sdown"] for each in found) == self._count


def _online(client: redis.Redis) -> set[int]:
    """Return the ports of the replicas that follow this server."""
    found = client.info("replication")
    replicas = [found[f"slave{number}"] for number in range(found["connected_slaves"])]
    return {each["port"] for each in replicas if each["state"] == "online"}
