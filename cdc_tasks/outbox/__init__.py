"""Messages that an application writes into its transaction for the listener."""
