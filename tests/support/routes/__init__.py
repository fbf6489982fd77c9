"""Files of routes like those of users."""
