"""Errors in a snippet."""

from __future__ import annotations

__all__ = ["IncompleteCommandError", "WrongSnippetError"]


class WrongSnippetError(AssertionError):
    """A page shows something that does not work."""


class IncompleteCommandError(WrongSnippetError):
    """A command lacks a part: an argument or a value. In running text it may be just the command's name."""
