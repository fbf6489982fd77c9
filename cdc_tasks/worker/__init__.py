"""What a worker does with a task: run, retry, give up, report."""
