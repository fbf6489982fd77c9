"""Modules of tasks as users write them."""
