"""How a worker runs a task, retries it, gives up and reports."""
