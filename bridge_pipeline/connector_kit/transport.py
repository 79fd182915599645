"""How a session reaches its source: only at addresses that were checked, and within one deadline.

A timeout per read lets a source send a byte now and then for ever; here every read and write of
a request ends with the request's deadline.
"""

import ipaddress
import math
import os
import socket
import ssl
import time
from collections.abc import Iterable
from functools import cache
from typing import Any

import httpcore
import httpx

# As long as httpx itself keeps an idle connection.
_KEEP_ALIVE = 5.0
_PIECE = 1_048_576


class NotPublic(RuntimeError):
    """A host's name stands for an address that is not public."""


class Deadline:
    """The moment by which the request under way must be answered completely."""

    def __init__(self) -> None:
        self._seconds = self._end = math.inf

    def begin(self, seconds: float) -> None:
        """From now on, for that long."""
        self._seconds, self._end = seconds, time.monotonic() + seconds

    def left(self, timeout: float | None) -> float | None:
        """How long the next read or write may take: `timeout`, or less.

        Raises:
            httpcore.ReadTimeout: there is no time left.
        """
        left = self._end - time.monotonic()
        if left <= 0:
            raise httpcore.ReadTimeout(f"the answer took longer than {self._seconds:g} s")
        return timeout if left == math.inf else min(left, timeout or left)


class GuardedTransport(httpx.HTTPTransport):
    """Connects to the very address that was checked, so that a name cannot be rebound to a private
    one in between.

    Raises:
        NotPublic: on a request, without `allow_private`.
    """

    def __init__(self, allow_private: bool, deadline: Deadline) -> None:
        context = _ssl_context(os.environ.get("SSL_CERT_FILE"), os.environ.get("SSL_CERT_DIR"))
        super().__init__(verify=context, trust_env=False)
        self._pool = httpcore.ConnectionPool(
            ssl_context=context,
            max_connections=1,
            keepalive_expiry=_KEEP_ALIVE,
            network_backend=_GuardedBackend(allow_private, deadline),
        )


@cache
def _ssl_context(file: str | None, folder: str | None) -> ssl.SSLContext:
    """One for all clients that trust the authorities of this file and folder, which OpenSSL's variables name.

    Reading the certificates takes longer than many a request.
    """
    return httpx.create_ssl_context()


class _GuardedBackend(httpcore.SyncBackend):
    def __init__(self, allow_private: bool, deadline: Deadline) -> None:
        self._allow_private = allow_private
        self._deadline = deadline

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.NetworkStream:
        failure: Exception | None = None
        for address in self._checked_addresses(host, port):
            left = self._deadline.left(timeout)
            try:
                stream = super().connect_tcp(address, port, left, local_address, socket_options)
                return _TimedStream(stream, self._deadline)
            except (httpcore.ConnectError, httpcore.ConnectTimeout) as error:
                # `localhost` is ::1 first, and the server may listen on 127.0.0.1 only.
                failure = error
        raise failure or httpcore.ConnectError(f"the name {host} has no address")

    def _checked_addresses(self, host: str, port: int) -> list[str]:
        try:
            found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError) as error:
            raise httpcore.ConnectError(f"the name {host} cannot be resolved: {error}") from error
        addresses = [str(info[4][0]) for info in found]
        refused = [a for a in addresses if not ipaddress.ip_address(a.split("%")[0]).is_global]
        if refused and not self._allow_private:
            raise NotPublic(f"{host} resolves to {refused[0]}, which is not a public address")
        return addresses


class _TimedStream(httpcore.NetworkStream):
    """A connection whose reads and writes end with the deadline."""

    def __init__(self, stream: httpcore.NetworkStream, deadline: Deadline) -> None:
        self._stream = stream
        self._deadline = deadline

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        # Whoever reads takes larger pieces than he asks for as well, and needs fewer of them.
        return self._stream.read(max(max_bytes, _PIECE), self._deadline.left(timeout))

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self._stream.write(buffer, self._deadline.left(timeout))

    def close(self) -> None:
        self._stream.close()

    def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore.NetworkStream:
        secured = self._stream.start_tls(ssl_context, server_hostname, self._deadline.left(timeout))
        return _TimedStream(secured, self._deadline)

    def get_extra_info(self, info: str) -> Any:
        return self._stream.get_extra_info(info)
