"""A database engine like those for passwords that expire: it fetches the password for each connection."""
