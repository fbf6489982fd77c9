"""An audit log: each change of the shop's tables, with old and new values, and who made it."""
