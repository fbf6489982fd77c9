"""The tables that the routes name: which they were, which they are, and whether rows were missed."""
