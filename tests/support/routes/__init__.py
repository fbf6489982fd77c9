"""Files of routes as users write them."""
