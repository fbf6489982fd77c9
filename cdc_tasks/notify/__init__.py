"""Messages to people: what they say, to which account, how often, and what was sent."""
