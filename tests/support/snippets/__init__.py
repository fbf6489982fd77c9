"""The fenced blocks of README.md and docs/, each held to what its language can be held to."""
