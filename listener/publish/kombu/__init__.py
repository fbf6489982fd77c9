"""RabbitMQ and any other broker that kombu supports: at least once."""
