"""The same task in each framework, and the file in which it records when it ran."""
