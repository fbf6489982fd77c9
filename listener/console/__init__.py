"""The console: a web page beside the listener, for a person who asks whether it works, and acts if it does not."""
