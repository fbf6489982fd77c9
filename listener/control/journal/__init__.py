"""The journal: changes kept on the listener's disk, to look them up and replay them."""
