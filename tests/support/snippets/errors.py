"""What is wrong with a snippet."""

from __future__ import annotations

__all__ = ["IncompleteCommandError", "WrongSnippetError"]


class WrongSnippetError(AssertionError):
    """A page shows something that does not work."""


class IncompleteCommandError(WrongSnippetError):
    """A command lacks a part: an argument, a value. In a running text it is the name of the command."""
