"""The application that ships with the engine: tickets and users, and who is told about them."""
