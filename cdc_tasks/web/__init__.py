"""Middleware: what a request changes says who made it. No framework is needed to import this package."""
