"""An engine as services with passwords that expire have one: it fetches the password at each connect."""
