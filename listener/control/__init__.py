"""Commands to a running listener: their queue, who gave them, and their results."""
