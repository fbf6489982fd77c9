"""What each example shows, step by step."""
