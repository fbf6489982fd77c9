"""Reading the rows that are there, a chunk at a time, and finding the place of each chunk in the binlog."""
