"""`cdc_tasks.install` in another app: what changes, what stays, and that nothing else in the process changes."""

from __future__ import annotations

import pickle
import subprocess
import sys
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import kombu
import pytest
from celery import Celery, Task, shared_task
from celery.exceptions import Retry
from kombu import pools
from kombu.transport import TRANSPORT_ALIASES

from cdc_tasks import CDCError, TryAgain, install
from cdc_tasks.installed import Parts, is_foreign, parts_of
from cdc_tasks.retry import MAX_RETRIES
from cdc_tasks.worker.base_task import Retrying, max_retries_of
from cdc_tasks.worker.poison import BoundedRequest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_REDIS = "redis://localhost:1/0"
_OURS = "cdc_tasks.broker.redis.transport"
_KOMBUS = "kombu.transport.redis"


class TheirTask(Task):  # type: ignore[type-arg]  # generic in Celery's stubs only
    """A base class with a `__call__`, as Flask's manual shows one."""

    called: list[str] = []  # noqa: RUF012  # of this test
    max_retries = 2

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self.called.append(self.name)
        return super().__call__(*args, **kwargs)


@pytest.fixture
def app() -> Iterator[Celery]:
    with Celery("shop", broker=_REDIS, set_as_current=False) as made:
        yield made


def _transport(app: Celery, url: str | None = None) -> str:
    with app.connection_for_write(url) as connection:
        return type(connection.transport).__module__


def _sum(a: int, b: int) -> int:
    return a + b


def _raises_try_again() -> None:
    raise TryAgain


# --- The transport --------------------------------------------------------------------------------------


def test_only_the_app_that_was_asked_for_has_our_transport(app: Celery) -> None:
    before = dict(TRANSPORT_ALIASES)
    with Celery("other", broker=_REDIS, set_as_current=False) as other:
        install(app)
        assert (_transport(app), _transport(other)) == (_OURS, _KOMBUS)
    assert before == TRANSPORT_ALIASES


@pytest.mark.parametrize(
    ("url", "transport"),
    [
        ("redis://localhost:1/0", _OURS),
        ("rediss://localhost:1/0", _OURS),
        ("sentinel://localhost:1/0", _OURS),
        ("redis+socket:///tmp/no.sock", _OURS),
        ("amqp://localhost:1//", "cdc_tasks.broker.rabbitmq.transport"),
        ("amqps://localhost:1//", "cdc_tasks.broker.rabbitmq.transport"),
        ("memory://", "kombu.transport.memory"),
    ],
)
def test_each_address_of_a_broker_has_its_transport(app: Celery, url: str, transport: str) -> None:
    install(app)
    assert _transport(app, url) == transport


def test_the_next_of_several_brokers_has_our_transport_too(app: Celery) -> None:
    install(app)
    with app.connection_for_write("redis://localhost:1/0;redis://localhost:2/0") as connection:
        connection.maybe_switch_next()
        assert connection.port == 2
        assert type(connection.transport).__module__ == _OURS
        assert type(connection.clone().transport).__module__ == _OURS


def test_the_connections_of_a_pool_have_our_transport_too(app: Celery) -> None:
    install(app)
    with app.pool.acquire() as connection:
        assert type(connection.transport).__module__ == _OURS
        assert connection.transport_options["visibility_timeout"] == 60


def test_two_apps_with_one_broker_share_no_pool_of_connections(app: Celery) -> None:
    with Celery("other", broker=_REDIS, set_as_current=False) as other:
        install(app)
        ours, theirs = (pools.connections[each.connection_for_write()] for each in (app, other))
        assert ours is not theirs
        assert ours is pools.connections[app.connection_for_write()]


def test_the_apps_own_transport_options_win(app: Celery) -> None:
    app.conf.broker_transport_options = {"visibility_timeout": 3600, "queue_order_strategy": "priority"}
    install(app)
    with app.connection_for_write() as connection:
        assert connection.transport_options["visibility_timeout"] == 3600
        assert connection.transport_options["queue_order_strategy"] == "priority"
        assert connection.transport_options["socket_timeout"] == 5


def test_a_part_can_be_left_out(app: Celery) -> None:
    install(app, transport=False, late_acks=False, dead_letters=False)
    assert _transport(app) == _KOMBUS
    assert not app.conf.task_acks_late
    assert app.conf.worker_consumer == "celery.worker.consumer:Consumer"
    assert type(app.connection_for_write()) is kombu.Connection
    assert isinstance(app.task(_raises_try_again), Retrying)  # `retries` is there


# --- Settings -------------------------------------------------------------------------------------------


def _from_object(app: Celery) -> None:
    app.config_from_object(SimpleNamespace(task_acks_late=False, task_default_queue="theirs"))


def _by_namespace(app: Celery) -> None:
    settings = SimpleNamespace(CELERY_TASK_ACKS_LATE=False, CELERY_TASK_DEFAULT_QUEUE="theirs", DEBUG=True)
    app.config_from_object(settings, namespace="CELERY")


def _by_old_names(app: Celery) -> None:
    app.config_from_object(SimpleNamespace(CELERY_ACKS_LATE=False, CELERY_DEFAULT_QUEUE="theirs"))


def _by_update(app: Celery) -> None:
    app.conf.update(task_acks_late=False, task_default_queue="theirs")


def _forced(app: Celery) -> None:
    app.config_from_object(SimpleNamespace(task_acks_late=False, task_default_queue="theirs"), force=True)


_WAYS = [_from_object, _by_namespace, _by_old_names, _by_update, _forced]


@pytest.mark.parametrize("configure", _WAYS)
@pytest.mark.parametrize("order", ["before", "after", "after it was read"])
def test_the_apps_own_settings_win(app: Celery, configure: Callable[[Celery], None], order: str) -> None:
    if order == "before":
        install(app)
    configure(app)
    if order == "after it was read":
        assert app.conf.task_default_queue == "theirs"
    install(app)
    assert app.conf.task_acks_late is False
    assert app.conf.task_reject_on_worker_lost is True
    assert app.conf.task_default_queue == "theirs"
    assert app.conf.worker_consumer == "cdc_tasks.worker.consumer:Consumer"
    assert _transport(app) == _OURS


def test_an_app_that_is_configured_a_second_time_keeps_our_settings(app: Celery) -> None:
    install(app)
    assert app.conf.task_acks_late
    app.config_from_object(SimpleNamespace(task_default_queue="second"))
    assert (app.conf.task_default_queue, app.conf.task_acks_late) == ("second", True)
    app.conf.update(task_acks_late=False)
    assert not app.conf.task_acks_late


def test_queues_and_routes_stay_the_apps_own(app: Celery) -> None:
    install(app)
    assert app.conf.task_create_missing_queues is True
    assert not app.conf.task_routes
    assert list(app.amqp.queues) == ["celery"]
    assert app.amqp.router.route({}, "any.task")["queue"].name == "celery"


# --- Tasks ----------------------------------------------------------------------------------------------


def _decorated(app: Celery) -> str:
    app.task(name="shop.decorated")(_raises_try_again)
    return "shop.decorated"


def _decorated_with_base(app: Celery) -> str:
    app.task(name="shop.with_base", base=TheirTask)(_raises_try_again)
    return "shop.with_base"


def _shared(_app: Celery) -> str:
    shared_task(name="shop.shared_with_base", base=TheirTask)(_raises_try_again)
    return "shop.shared_with_base"


def _as_a_class(app: Celery) -> str:
    class Sent(TheirTask):
        name = "shop.class"

        def run(self) -> None:
            _raises_try_again()

    app.register_task(Sent())
    return "shop.class"


@pytest.mark.parametrize("define", [_decorated, _decorated_with_base, _shared, _as_a_class])
@pytest.mark.parametrize("order", ["before", "after", "after it was made"])
def test_each_task_is_retried_whenever_and_however_it_was_defined(
    app: Celery, define: Callable[[Celery], str], order: str
) -> None:
    if order == "before":
        install(app)
    name = define(app)
    if order == "after it was made":
        app.finalize()
    install(app)
    task: Any = app.tasks[name]
    assert isinstance(task, Retrying)
    assert issubclass(task.Request, BoundedRequest)
    task.push_request(id="1", called_directly=False, is_eager=False, retries=0, delivery_info={})
    task.retry = lambda **given: (_ for _ in ()).throw(Retry(str(given["max_retries"])))
    try:
        with pytest.raises(Retry, match="2" if isinstance(task, TheirTask) else str(MAX_RETRIES)):
            task()
    finally:
        task.pop_request()


def test_a_base_class_of_theirs_is_called_and_stays_what_it_is(app: Celery) -> None:
    install(app)
    TheirTask.called.clear()
    task: Any = app.task(name="shop.sum", base=TheirTask)(_sum)
    assert task.apply(args=(1, 2)).get() == 3
    assert TheirTask.called == ["shop.sum"]
    assert isinstance(task, TheirTask)
    assert not issubclass(TheirTask, Retrying)
    assert task.__class__.__module__ == __name__


def test_how_often_celery_retries_stays_as_it_was(app: Celery) -> None:
    install(app)
    app.task(name="shop.plain")(_raises_try_again)
    app.task(name="shop.told", max_retries=None)(_raises_try_again)
    plain, told = app.tasks["shop.plain"], app.tasks["shop.told"]
    assert (plain.max_retries, plain.default_retry_delay) == (Task.max_retries, Task.default_retry_delay)
    assert max_retries_of(plain) == MAX_RETRIES
    assert max_retries_of(told) is None


def test_a_task_of_another_app_is_not_changed(app: Celery) -> None:
    with Celery("other", broker=_REDIS, set_as_current=False) as other:
        install(app)
        shared_task(name="shop.shared", shared=True)(_raises_try_again)
        assert isinstance(app.tasks["shop.shared"], Retrying)
        assert not isinstance(other.tasks["shop.shared"], Retrying)
        assert not isinstance(other, type(app))


# --- The app --------------------------------------------------------------------------------------------


def test_an_app_stays_of_its_class(app: Celery) -> None:
    theirs = type(app)
    assert install(app) is app
    assert isinstance(app, theirs)
    assert type(app).__name__ == theirs.__name__
    assert is_foreign(app)
    assert type(pickle.loads(pickle.dumps(app))) is theirs  # as a pool that spawns does


def test_a_second_call_changes_nothing_and_may_not_ask_for_other_parts(app: Celery) -> None:
    install(app, health=False)
    kind = type(app)
    install(app, health=False)
    assert type(app) is kind
    assert parts_of(app) == Parts(health=False)
    with pytest.raises(CDCError, match="already installed in the app shop, with other parts") as told:
        install(app)
    assert told.value.hint


def test_what_is_no_app_is_refused() -> None:
    with pytest.raises(CDCError, match="got str, not a Celery app") as told:
        install("shop")  # type: ignore[arg-type]  # the mistake
    assert told.value.code == "install"


_LOADS = """
import sys
from celery import Celery
from cdc_tasks import install
app = Celery("shop", broker="redis://localhost:1/0")
install(app)
app.loader.import_default_modules()
app.finalize()
with app.connection_for_write() as connection:
    connection.transport
import cdc_tasks.worker.consumer, cdc_tasks.worker.startup
heavy = {"flower", "prometheus_client", "psycopg2", "pydantic", "pymsteams", "pymysql", "requests",
         "slack_sdk", "sqlalchemy", "tornado", "typer"}
ours = {name for name in sys.modules if name.startswith(("cdc_tasks.helpdesk", "cdc_tasks.notify",
        "cdc_tasks.master_cache", "cdc_tasks.settings", "cdc_tasks.celery", "listener"))}
print(sorted(heavy & set(sys.modules)), sorted(ours))
print(sorted(name for name in app.tasks if not name.startswith("celery.")))
"""


def test_nothing_comes_along_that_the_apps_worker_does_not_need() -> None:
    loaded = subprocess.run([sys.executable, "-c", _LOADS], check=True, capture_output=True, text=True).stdout
    assert loaded.splitlines() == ["[] []", "['cdc_tasks.answer_health', 'cdc_tasks.send_held_retries']"]
