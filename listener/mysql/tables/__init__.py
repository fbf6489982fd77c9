"""The tables that the routes name, as the log and the catalogue describe them."""
