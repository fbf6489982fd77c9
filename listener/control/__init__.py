"""What a person tells a listener that runs: where such commands wait, who gave them, and what came of them."""
