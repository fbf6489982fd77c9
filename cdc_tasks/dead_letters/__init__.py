"""Messages that no task could process, kept until a person replays or drops them."""
