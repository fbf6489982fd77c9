"""The console: a web page that shows whether the listener works, and gives commands if it does not."""
