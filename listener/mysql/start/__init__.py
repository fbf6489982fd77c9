"""The start of reading, and whether the server still has the log of a checkpoint."""
