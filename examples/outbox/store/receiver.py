"""The service of someone else, which receives the store's orders: `python -m store.receiver PORT`."""

import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

_seen: set[str] = set()


class Receiver(BaseHTTPRequestHandler):
    """Prints each event once."""

    def do_POST(self) -> None:
        """Take an event."""
        body = self.rfile.read(int(self.headers["Content-Length"])).decode()
        key = self.headers["Idempotency-Key"]
        print(f"{'again' if key in _seen else 'got'}: {body}", flush=True)
        _seen.add(key)
        self.send_response(204)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Print nothing else."""


if __name__ == "__main__":
    ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Receiver).serve_forever()
