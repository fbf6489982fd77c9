"""Where reading begins, and whether the server still has the log that a checkpoint belongs to."""
