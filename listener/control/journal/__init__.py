"""The journal: changes kept on the listener's disk, to be looked up and fired again."""
