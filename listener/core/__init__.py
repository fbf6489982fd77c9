"""The contracts of sources and publishers, and code that the listener's other packages share."""
