"""Seals credentials for the database: AES-256-GCM under a key that never lies there.

The key comes from BRIDGE_SECRET_KEY, from what BRIDGE_SECRET_KEY_COMMAND prints, or from a file in
the home that is made at first use. Keys of earlier times still open what they sealed; see
`steps.rotate`. A box opens only for the tenant, connection and field it was made for.
"""

import base64
import binascii
import hashlib
import hmac
import secrets
import shlex
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from bridge_pipeline.connector_kit.journal import listed
from bridge_pipeline.database.keyfile import write_key
from bridge_pipeline.database.locks import file_lock
from bridge_pipeline.naming import Home
from bridge_pipeline.redaction import remember
from bridge_pipeline.settings import Settings

_KEY_BYTES = 32
_NONCE_BYTES = 12
KEY_FILE, NEXT_KEY_FILE = "secret.key", "next.key"
# Seconds; a key management service that is asked over a network.
_COMMAND_SECONDS = 60
Box = dict[str, str | int]


class SealingError(RuntimeError):
    """A credential cannot be sealed or opened; the message says what to do."""


@dataclass(frozen=True)
class Sealer:
    """Seals credentials with one key, and opens what it or a `former` one sealed, newest first.

    Attributes:
        upcoming: the key of a rotation that is not finished; it may have sealed already.
        reopened: gives the sealer that there is now: a rotation may have ended since this one was opened.
    """

    key: bytes = field(repr=False)
    former: tuple[bytes, ...] = field(default=(), repr=False)
    upcoming: bytes | None = field(default=None, repr=False)
    reopened: Callable[[], "Sealer"] | None = field(default=None, repr=False, compare=False)

    @property
    def key_id(self) -> str:
        """Names the key without telling it."""
        return _key_id(self.key)

    def find(self, key_id: object) -> bytes | None:
        """The key of that name, if it is one of these."""
        known = (self.key, *self.former, *filter(None, (self.upcoming,)))
        return next((key for key in known if _key_id(key) == key_id), None)

    def seal(self, secret: str, tenant: str, connection: str, name: str) -> Box:
        """The box of the credential `name` of a connection, as JSON."""
        nonce = secrets.token_bytes(_NONCE_BYTES)
        data = AESGCM(self.key).encrypt(nonce, secret.encode(), _purpose(tenant, connection, name))
        return {"v": 1, "key": self.key_id, "nonce": _text(nonce), "data": _text(data)}

    def unseal(self, box: Mapping[str, str | int], tenant: str, connection: str, name: str) -> str:
        """The credential in a box; from now on `redaction` masks it.

        Raises:
            SealingError: another key or another purpose made the box, or it is damaged.
        """
        place = f"the {name} of connection {connection}"
        if box.get("v") != 1:
            raise SealingError(f"{place} was sealed by a newer Project Bridge: install that one")
        key = self.find(box.get("key"))
        if key is None and self.reopened is not None:
            key = self.reopened().find(box.get("key"))
        if key is None:
            raise SealingError(
                f"{place} was sealed with the key {box.get('key')}, and this installation has {self.key_id}: "
                "bring back keys/secret.key or BRIDGE_SECRET_KEY, or give the credential anew with "
                "`bridge connections apply`"
            )
        try:
            nonce, data = (base64.b64decode(str(box[part]), validate=True) for part in ("nonce", "data"))
            secret = AESGCM(key).decrypt(nonce, data, _purpose(tenant, connection, name)).decode()
        except (InvalidTag, KeyError, ValueError) as error:
            raise SealingError(
                f"{place} is damaged or comes from elsewhere: give it anew with `bridge connections apply`"
            ) from error
        remember(secret)
        return secret

    def fingerprint(self, secret: str) -> str:
        """Names a credential without telling it; the same on every machine that has the keys.

        The oldest key makes it, so that the quota of a credential outlives a rotation.
        """
        return _derived((self.key, *self.former)[-1], "fingerprint", secret)[:32]


def _key_id(key: bytes) -> str:
    return _derived(key, "key id")[:16]


def _derived(key: bytes, *parts: str) -> str:
    return hmac.new(key, "\0".join(parts).encode(), hashlib.sha256).hexdigest()


def open_sealer(settings: Settings, home: Home) -> Sealer:
    """The sealer with the key of the environment or else of the home, where it is made if missing.

    Raises:
        SealingError: what is there is not a key, or the command gives none.
    """
    given = settings.secret_key is not None or settings.secret_key_command is not None
    path = home.keys / KEY_FILE
    if not given and not path.exists():
        with file_lock(home.keys / "lock"):
            if not path.exists():
                make_key(path)
    return read_sealer(settings, home)


def read_sealer(settings: Settings, home: Home) -> Sealer:
    """The same, with keys that are there: none is made, and no lock is waited for.

    Raises:
        SealingError: there is no key, what is there is none, or the command gives none.
    """
    reopened = partial(read_sealer, settings, home)
    if settings.secret_key is not None:
        return Sealer(*_given(settings, settings.secret_key.get_secret_value(), "BRIDGE_SECRET_KEY"))
    if settings.secret_key_command is not None:
        printed = _printed(settings.secret_key_command)
        keys = _given(settings, printed, "what BRIDGE_SECRET_KEY_COMMAND prints")
        return Sealer(*keys, reopened=reopened)
    path = home.keys / KEY_FILE
    # In this order no key is missed while a rotation gives them other names.
    upcoming = _read(home.keys / NEXT_KEY_FILE)
    key = _read(path)
    former = tuple(filter(None, map(_read, former_keys(home))))
    if key is None:
        raise SealingError(
            f"{path} is gone: bring it back, or run this again for a new one and give all credentials anew "
            "with `bridge connections apply`"
        )
    return Sealer(key, former, upcoming, reopened)


def former_keys(home: Home) -> list[Path]:
    """The files of the home's keys of earlier times, newest first."""
    return listed(home.keys, "former-*.key")[::-1]


def _given(settings: Settings, text: str, place: str) -> tuple[bytes, tuple[bytes, ...]]:
    """A key of the environment, and the former ones that it gives."""
    former = settings.former_secret_keys
    keys = former.get_secret_value().split(",") if former else ()
    return _decoded(text, place), tuple(_decoded(key, "BRIDGE_FORMER_SECRET_KEYS") for key in keys)


def _printed(command: str) -> str:
    """What a command prints, such as one that asks a key management service."""
    try:
        done = subprocess.run(
            shlex.split(command), stdout=subprocess.PIPE, timeout=_COMMAND_SECONDS, check=True, text=True
        )
    except (OSError, ValueError, subprocess.SubprocessError) as error:
        raise SealingError(f"BRIDGE_SECRET_KEY_COMMAND gives no key: {error}") from None
    return done.stdout


def _read(path: Path) -> bytes | None:
    try:
        return _decoded(path.read_text(), str(path))
    except FileNotFoundError:
        return None


def make_key(path: Path) -> None:
    """Writes a new key; the caller holds the lock of its folder."""
    write_key(path, base64.b64encode(secrets.token_bytes(_KEY_BYTES)) + b"\n")


def _decoded(text: str, place: str) -> bytes:
    text = text.strip()
    remember(text)
    try:
        key = base64.b64decode(text.replace("-", "+").replace("_", "/"), validate=True)
    except binascii.Error:
        key = b""
    if len(key) != _KEY_BYTES:
        raise SealingError(f"{place} must hold {_KEY_BYTES} bytes in base64: `openssl rand -base64 32`")
    return key


def _purpose(tenant: str, connection: str, name: str) -> bytes:
    return "\0".join(("bridge", tenant, connection, name)).encode()


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode()
