"""A helpdesk that only sends: pages of `records`, from files, so that it is never the limit.

Run as `python -m bench.source FOLDER`; prints its address. `FOLDER/current` says which world it
serves, and may be set to another one at any time. Every filter lets everything through, and there
is no record that a listing does not show.
"""

import json
import os
import re
import sys
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

_PATH = re.compile(r"/api/v1/(\w+)\.json")
_EMPTY = b'{"page":0,"more":false,"data":[]}'


@cache
def _starts(folder: Path, entity: str) -> list[int]:
    return json.loads((folder / f"{entity}.json").read_text())


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    root = Path()

    def do_GET(self) -> None:
        parts = urlsplit(self.path)
        match = _PATH.fullmatch(parts.path)
        page = int(parse_qs(parts.query).get("page", ["1"])[0])
        folder = (self.root / "current").resolve()
        if not match or not (folder / f"{match[1]}.pages").exists():
            self._head(404, 0)
            return
        starts = _starts(folder, match[1])
        if not 0 < page < len(starts):
            self._head(200, len(_EMPTY))
            self.wfile.write(_EMPTY)
            return
        first, size = starts[page - 1], starts[page] - starts[page - 1]
        self._head(200, size)
        with (folder / f"{match[1]}.pages").open("rb") as file:
            while size:
                sent = os.sendfile(self.connection.fileno(), file.fileno(), first, size)
                first, size = first + sent, size - sent

    def _head(self, status: int, size: int) -> None:
        self.send_response_only(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(size))
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        """Nobody reads it."""


def main(folder: str) -> None:
    """Serves until it is ended."""
    _Handler.root = Path(folder)
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    sys.stdout.write(f"http://127.0.0.1:{server.server_port}\n")
    sys.stdout.flush()
    server.serve_forever()


if __name__ == "__main__":
    main(sys.argv[1])
