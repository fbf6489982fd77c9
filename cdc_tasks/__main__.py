"""`python -m cdc_tasks`."""

from __future__ import annotations

from cdc_tasks.cli.commands import main

__all__ = ["main"]

if __name__ == "__main__":
    main()
