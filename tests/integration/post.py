"""A mail server and a chat service on loopback that answer as a test says, and remember what they got.

Also the sending process, for tests that run several or kill one.
"""

import asyncio
import email
import json
import os
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from email.message import EmailMessage
from email.policy import default
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from aiosmtpd.controller import Controller

from bridge_pipeline.database import outbox
from bridge_pipeline.database.workspace import open_workspace
from bridge_pipeline.steps.deliver import deliver


@dataclass
class Post:
    """A mail server. `refused` says for an address, or `data`, with which line it is refused."""

    port: int
    refused: dict[str, str] = field(default_factory=dict)
    mails: list[EmailMessage] = field(default_factory=list)
    raw: list[bytes] = field(default_factory=list)
    # How many mails must be on their way at once before any is taken.
    together: int = 1
    under_way: threading.Event = field(default_factory=threading.Event)
    _count: int = 0
    _controller: Controller | None = None

    def start(self) -> None:
        """Opens the port."""
        self._controller = Controller(self, hostname="127.0.0.1", port=self.port)
        self._controller.start()

    def stop(self) -> None:
        """Closes the port: connections are refused."""
        if self._controller is not None:
            self._controller.stop()
            self._controller = None

    async def handle_RCPT(self, _server: Any, _session: Any, envelope: Any, address: str, _o: Any) -> str:
        if refusal := self.refused.get(address):
            return refusal
        envelope.rcpt_tos.append(address)
        return "250 OK"

    async def handle_DATA(self, _server: Any, _session: Any, envelope: Any) -> str:
        if refusal := self.refused.get("data"):
            return refusal
        self._count += 1
        self.under_way.set()
        async with asyncio.timeout(300):
            while self._count < self.together:
                await asyncio.sleep(0.01)
        self.raw.append(envelope.content)
        self.mails.append(email.message_from_bytes(envelope.content, policy=default))  # type: ignore[arg-type]
        return "250 taken"

    def subjects(self) -> list[str]:
        """The subjects of the mails so far."""
        return [mail["Subject"] for mail in self.mails]


@contextmanager
def post_office() -> Iterator[Post]:
    """A mail server that is open."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    post = Post(port)
    post.start()
    try:
        yield post
    finally:
        post.stop()


@dataclass
class Chat:
    """A service that takes JSON; `status` is what it answers."""

    port: int = 0
    status: int = 200
    messages: list[dict[str, Any]] = field(default_factory=list)


@contextmanager
def chat_service() -> Iterator[Chat]:
    """A chat service that is open."""
    chat = Chat()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            if chat.status == 200:
                chat.messages.append(json.loads(body))
            self.send_response(chat.status)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        chat.port = server.server_address[1]
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield chat
        finally:
            server.shutdown()


def main(fate: str) -> None:
    """Sends what is due; with the fate `dies`, the process is killed before it notes what it sent."""
    if fate == "dies":
        outbox.mark_sent = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
    deliver(open_workspace())


if __name__ == "__main__":
    main(sys.argv[1])
