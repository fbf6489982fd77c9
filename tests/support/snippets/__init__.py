"""Checks of the fenced blocks in README.md and docs/, each as far as its language allows."""
