"""kombu's RabbitMQ transport with time-outs, confirms, and queues of others left as they are."""
