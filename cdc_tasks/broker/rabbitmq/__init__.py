"""kombu's RabbitMQ transport with time-outs and confirms; existing queues are not changed."""
