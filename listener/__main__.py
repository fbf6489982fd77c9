"""`python -m listener`."""

from __future__ import annotations

from listener.cli.commands import main

__all__ = ["main"]

if __name__ == "__main__":
    main()
