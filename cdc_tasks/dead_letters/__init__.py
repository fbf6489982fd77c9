"""Messages that nobody could process, kept until a person replays or drops them."""
