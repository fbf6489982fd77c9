"""Celery's settings, each with its reason: for workers, for Flower, and for the listener, which has no tasks.

The environment fills in what differs from place to place; to go further than that, write a module of your own
that starts with `from cdc_tasks.config.celery import *` and name it in CELERY_CONFIG_MODULE.
"""

from kombu import Exchange, Queue
from kombu.transport import TRANSPORT_ALIASES

from cdc_tasks.settings import BrokerSettings, load

_settings = load(BrokerSettings)
_scheme = _settings.celery_broker_url.get_secret_value().partition("://")[0].partition("+")[0]
_is_rabbitmq = _scheme in {"amqp", "amqps", "pyamqp"}

# --- Broker -----------------------------------------------------------------------------------------------

broker_url = _settings.celery_broker_url.get_secret_value()
# A broker that is away, at the start or later, is waited for: for ever, since giving up helps nobody.
broker_connection_retry_on_startup = True
broker_connection_max_retries = None
# A half-open connection is noticed within seconds; with the defaults a worker never recovers from one. RabbitMQ gives
# what it has sent there to others after two heartbeats.
broker_heartbeat = 4
if _is_rabbitmq:
    # kombu's own waits for a confirmation for ever.
    for _alias in ("amqp", "pyamqp"):
        TRANSPORT_ALIASES[_alias] = "cdc_tasks.broker.rabbitmq.transport:Transport"
    TRANSPORT_ALIASES["amqps"] = "cdc_tasks.broker.rabbitmq.transport:SSLTransport"
    # The queue for `celery inspect`: were it the connection's own, a worker whose connection broke without a word could
    # not have it again before RabbitMQ has noticed as well, and would end.
    control_queue_exclusive = False
    control_queue_durable = True
    broker_transport_options = {
        "confirm_publish": True,  # off by default: the broker may drop a message without a word
        "read_timeout": 10,
        "write_timeout": 10,
        "max_retries": 3,
    }
elif _scheme in {"redis", "rediss", "sentinel", "unix", "socket"}:
    # kombu's own loses a message with a worker that dies at the wrong moment.
    for _alias in ("redis", "rediss"):
        TRANSPORT_ALIASES[_alias] = "cdc_tasks.broker.redis.transport:Transport"
    TRANSPORT_ALIASES["sentinel"] = "cdc_tasks.broker.redis.transport:SentinelTransport"
    # A Redis that takes no writes for a while (no replica, a full disk) is waited for as one that is away.
    broker_channel_error_retry = True
    broker_transport_options = {
        "socket_timeout": 5,
        "socket_connect_timeout": 5,
        "health_check_interval": 5,
        # A task of a worker that died, or has hung for so long, comes back after this many seconds. A worker that
        # lives says every ten seconds that it still has its tasks, however long they run or wait.
        "visibility_timeout": 60,
        "unacked_restore_interval": 5,
    }

# --- Messages ---------------------------------------------------------------------------------------------

# JSON only: a pickle from a broker that somebody else can write to is code that runs here.
task_serializer = result_serializer = event_serializer = "json"
accept_content = result_accept_content = ["json"]
timezone = "UTC"
enable_utc = True
# Nobody waits for a result; what a task did is in its log line and in Flower.
task_ignore_result = True
result_backend = None
# A broker that is away for moments does not fail a task that starts others.
task_publish_retry = True
task_publish_retry_policy = {"max_retries": 8, "interval_start": 0.1, "interval_step": 0.5, "interval_max": 3}

# --- Queues -----------------------------------------------------------------------------------------------


def _queue(name: str) -> Queue:
    if not _is_rabbitmq:
        return Queue(name, Exchange(name, type="direct"), routing_key=name)
    # Quorum queues outlive a node. The topic exchange is what RabbitMQ's delayed delivery needs: a task that
    # waits for its retry then waits in the broker, and blocks no worker.
    return Queue(
        name,
        Exchange("cdc_tasks", type="topic"),
        routing_key=name,
        queue_arguments={"x-queue-type": "quorum"},
    )


# People wait for notifications, readers wait for the cache, nobody waits for bulk: a worker takes from all in
# turn, so that a full queue holds up no other. Workers for one alone: `celery -A cdc_tasks worker -Q cache`.
task_queues = [_queue("celery"), _queue("notifications"), _queue("cache"), _queue("bulk")]
task_default_queue = "celery"  # for your own tasks; a route's `queue=` says otherwise
task_default_exchange = task_queues[0].exchange.name
task_default_exchange_type = task_queues[0].exchange.type
task_default_routing_key = "celery"
task_default_queue_type = "quorum" if _is_rabbitmq else "classic"
# A queue whose name is misspelt is an error, and not a place where tasks wait for ever.
task_create_missing_queues = False
task_routes = {
    "cdc_tasks.refresh_*": {"queue": "cache"},
    "cdc_tasks.refill_*": {"queue": "cache"},
    "cdc_tasks.bulk.*": {"queue": "bulk"},
    "cdc_tasks.*": {"queue": "notifications"},
}

# --- Running ----------------------------------------------------------------------------------------------

imports = _settings.cdc_task_modules
# A task is acknowledged when it is done. One whose worker dies comes back, but as a retry: a task that kills
# its worker does not do so for ever.
task_acks_late = True
task_reject_on_worker_lost = True
task_retry_on_worker_lost = True
# A failed task is over: kept unacknowledged it would be dropped by Redis and run for ever by RabbitMQ.
task_acks_on_failure = task_acks_on_timeout = True
# Every call that a task makes has a time-out of its own; these are for what hangs all the same.
task_soft_time_limit = 45
task_time_limit = 60
# A slow task keeps at most one other waiting behind it.
worker_prefetch_multiplier = 1
# A task that cannot be acknowledged any more will come back: two of it must not run side by side.
worker_cancel_long_running_tasks_on_connection_loss = True
# On SIGTERM running tasks get this long to end; what waits for its retry goes back to the queue.
worker_soft_shutdown_timeout = 30
worker_enable_soft_shutdown_on_idle = True
# Whatever a library leaks ends here. A new process takes a fifth of a second in which tasks wait, so not too often.
worker_max_tasks_per_child = 20_000
worker_max_memory_per_child = 400_000  # kB

# A message that no task is for is kept as a dead letter. Celery would drop it, and log the row that is in it.
worker_consumer = "cdc_tasks.worker.consumer:Consumer"

# --- Seeing -----------------------------------------------------------------------------------------------

# Flower lives from these. The event at sending costs the listener a factor of five, so there is none.
worker_send_task_events = True
task_send_sent_event = False
worker_hijack_root_logger = False
