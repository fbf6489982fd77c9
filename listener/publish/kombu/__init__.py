"""RabbitMQ and every other broker that kombu speaks with: at least once."""
