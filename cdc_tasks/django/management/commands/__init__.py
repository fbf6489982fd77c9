"""Commands of `manage.py`, by their files' names."""
