"""Routes that do not stand on a task."""

from cdc_tasks.django import accept

accept(
    "orders.*"
)  # transactions may enqueue these tasks: who can write to the database can ask for no others
