"""kombu's RabbitMQ transport, with its gaps closed."""
