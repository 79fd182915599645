"""Everything that is not mail: a message to any Apprise URL, such as Slack or Teams."""

import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

from bridge_pipeline.redaction import remember

# They draw, ring or write on the machine that sends, where no reviewer sits.
_LOCAL = {"blink1", "dbus", "gio", "glib", "gnome", "kde", "macosx", "qt", "syslog", "windows"}
_MAIL = {"mailto", "mailtos"}
# They name a file of the machine that sends.
_FILES = {"keyfile", "subfile", "template"}
_SECONDS = 15.0
# Shorter parts would mask ordinary words.
_SHORTEST_PART = 10


class NotNotified(RuntimeError):
    """The service was not reached, or did not take the message."""


def checked_url(url: str) -> str:
    """The schema of an Apprise URL that may be used.

    Raises:
        ValueError: Apprise cannot send there, or it would touch this machine; the URL is not quoted.
    """
    _remember(url)
    schema = url.partition("://")[0].lower()
    if schema in _MAIL:
        raise ValueError(
            "must be mailto:name@host for mail, which goes through BRIDGE_SMTP_URL; mailto:// is not used"
        )
    if schema in _LOCAL:
        raise ValueError(
            f"{schema}:// tells only the machine that sends; name a service that is reached over a network"
        )
    named = {key.lower().lstrip("+-:") for key, _ in parse_qsl(urlsplit(url).query, keep_blank_values=True)}
    if files := sorted(named & _FILES):
        raise ValueError(f"?{files[0]}= names a file of the machine that sends, which is not allowed")
    return _plugin(url).schema or schema


def notify(url: str, title: str, body: str) -> None:
    """Sends a plain text to the service of an Apprise URL.

    Raises:
        NotNotified: it was not reached or did not take it. Apprise does not say whether it ever will.
    """
    from apprise import Apprise, AppriseAsset, NotifyFormat

    _remember(url)
    plugin = _plugin(url)
    # Its own 4 s would call a slow answer a failure, and then the message is sent twice.
    plugin.socket_connect_timeout = plugin.socket_read_timeout = _SECONDS
    service = Apprise(asset=AppriseAsset(async_mode=False, interpret_emojis=False))
    service.add(plugin)
    with _heard() as lines:
        taken = service.notify(title=title, body=body, body_format=NotifyFormat.TEXT)
    if not taken:
        # Its lines name hosts and parts of the URL: only the status is told on.
        status = next(iter(re.findall(r"error=(\d{3})\b", "\n".join(lines))), None)
        raise NotNotified(f"the service answered {status}" if status else "the service was not reached")


def _plugin(url: str) -> Any:
    from apprise import Apprise

    with _heard():
        plugin = Apprise.instantiate(url)
    if plugin is None:
        raise ValueError("is no URL that Apprise can send to; see https://github.com/caronc/apprise/wiki")
    return plugin


def _remember(url: str) -> None:
    """Makes the URL, and each part of it that may be a credential, known to `redaction`."""
    remember(url)
    parts = urlsplit(url)
    values = [value for _, value in parse_qsl(parts.query)]
    pieces = [*parts.path.split("/"), *parts.netloc.replace("@", ":").split(":"), *values, parts.fragment]
    for piece in pieces:
        # Names of hosts stand in other lines too; tokens have no dot.
        if len(piece) >= _SHORTEST_PART and "." not in piece:
            remember(unquote(piece))


@contextmanager
def _heard() -> Iterator[list[str]]:
    """What Apprise logs within, and keeps it from the log: it tells parts of the URL."""
    lines: list[str] = []
    logger = logging.getLogger("apprise")
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())
    level, spread = logger.level, logger.propagate
    logger.addHandler(handler)
    logger.setLevel(logging.WARNING)
    logger.propagate = False
    try:
        yield lines
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
        logger.propagate = spread
