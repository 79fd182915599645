"""The one place that keeps secrets and people's addresses out of what is written.

Every log line, error text and recorded URL passes through `redact`. It removes the values this
process has learned (`remember`) in the forms they are written in, whatever stands where a
credential stands in a URL or header, and e-mail addresses and phone numbers. How values of
records are shown is the business of `masking`.
"""

import json
import logging
import re
from urllib.parse import quote, quote_plus

MASK = "[redacted]"
# Shorter values would mask ordinary words of a log line.
_SHORTEST = 6
_PATTERNS = (
    # Client Central puts the token in the URL; its own client's mask misses `_` (vendor-apis A.1).
    re.compile(r"((?:api_?key|access_token|api_token|token|password|secret)(?:=|%3D))[^&\s\"'<>\\]+", re.I),
    re.compile(
        r"((?:authorization|x-api-key|cookie)['\"]?\s*[:=]\s*['\"]?(?:basic |bearer )?)[^\s,'\"]+", re.I
    ),
    re.compile(r"(://[^\s/:@]*:)[^\s/@]+(?=@)"),
)
# The local part in quotes, too; not the user of a URL, which stands right after `//`.
_ADDRESS = re.compile(
    r"""(?<!//)(?<![\w.+%-])(?:"[^"\n]{1,64}"|[\w.!#$%&*+^~-]{1,64})"""
    r"(?:@|%40|&#64;|\uff20)(?:[\w-]{1,63}\.)+[\w-]{2,63}"
)
# With the sign of an international number; other digits of a log line are no numbers of people.
_PHONE = re.compile(r"(?<![\w+])\+\d(?:[ ().\-/\u00a0]{0,2}\d){6,14}(?!\d)")
_QUOTE = '"'
_known: set[str] = set()
# What a source was told, and so may send back. Other secrets never stand in its answers, but a word
# that happens to be one of them (a database's password) may, and is the customer's data.
_sent: set[str] = set()


def remember(secret: str, *, sent: bool = False) -> None:
    """Adds a secret to those that `redact` removes for the rest of this process.

    Args:
        sent: whether sources are told it, so that `redact_bytes` removes it from their answers.
    """
    if len(secret) >= _SHORTEST:
        forms = {secret, quote(secret, safe=""), quote_plus(secret), json.dumps(secret)[1:-1]}
        _known.update(forms)
        if sent:
            _sent.update(forms)


def redact(text: str) -> str:
    """`text` without secrets, e-mail addresses and phone numbers."""
    return redact_people(redact_secrets(text))


def redact_secrets(text: str) -> str:
    """`text` without secrets: known values and credentials in URLs and headers are masked."""
    text = redact_known(text)
    for pattern in _PATTERNS:
        text = pattern.sub(rf"\1{MASK}", text)
    return text


def redact_people(text: str) -> str:
    """`text` with e-mail addresses as `a…@…` and international phone numbers as `+…`."""
    if "@" in text or "%40" in text or "&#64;" in text or "\uff20" in text:
        text = _ADDRESS.sub(lambda found: f"{found[0].strip(_QUOTE)[:1]}…@…", text)
    return _PHONE.sub("+…", text) if "+" in text else text


def redact_known(text: str) -> str:
    """`text` without the values this process knows to be secret; all else is kept as it is."""
    for secret in sorted(_known, key=len, reverse=True):
        text = text.replace(secret, MASK)
    return text


def redact_bytes(body: bytes) -> bytes:
    """A source's answer, of any encoding, without the credentials that sources were told.

    Returns `body` itself if it holds none.
    """
    for secret in sorted(_sent, key=len, reverse=True):
        body = body.replace(secret.encode(), MASK.encode())
    return body


class RedactingFilter(logging.Filter):
    """Redacts the final text of records of the standard library's logging."""

    def filter(self, record: logging.LogRecord) -> bool:
        record.msg, record.args = redact(record.getMessage()), None
        if record.exc_info:
            record.exc_text = redact(logging.Formatter().formatException(record.exc_info))
            record.exc_info = None
        return True
