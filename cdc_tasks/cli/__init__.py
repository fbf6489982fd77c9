"""The commands of `python -m cdc_tasks`."""
