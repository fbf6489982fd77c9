"""Code that the tests share: servers, processes, stand-ins, and waiting."""
