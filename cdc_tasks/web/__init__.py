"""Middleware: the changes of a request carry who made them. Importing this package needs no framework."""
