"""A shop's routes and tasks, as they go into an image of their own."""
