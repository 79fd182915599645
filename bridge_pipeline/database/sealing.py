"""Seals credentials for the database: AES-256-GCM under one key that never lies there.

The key comes from BRIDGE_SECRET_KEY, or from a file in the home that is made at first use.
A box opens only for the tenant, connection and field it was made for.
"""

import base64
import binascii
import hashlib
import hmac
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from bridge_pipeline.database.keyfile import write_key
from bridge_pipeline.database.locks import file_lock
from bridge_pipeline.naming import Home
from bridge_pipeline.redaction import remember
from bridge_pipeline.settings import Settings

_KEY_BYTES = 32
_NONCE_BYTES = 12
Box = dict[str, str | int]


class SealingError(RuntimeError):
    """A credential cannot be sealed or opened; the message says what to do."""


@dataclass(frozen=True)
class Sealer:
    """Seals and opens credentials with one key."""

    key: bytes = field(repr=False)

    @property
    def key_id(self) -> str:
        """Names the key without telling it."""
        return self._derived("key id")[:16]

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
        if box.get("key") != self.key_id:
            raise SealingError(
                f"{place} was sealed with the key {box.get('key')}, and this installation has {self.key_id}: "
                "bring back keys/secret.key or BRIDGE_SECRET_KEY, or give the credential anew with "
                "`bridge connections apply`"
            )
        try:
            nonce, data = (base64.b64decode(str(box[part]), validate=True) for part in ("nonce", "data"))
            secret = AESGCM(self.key).decrypt(nonce, data, _purpose(tenant, connection, name)).decode()
        except (InvalidTag, KeyError, ValueError) as error:
            raise SealingError(
                f"{place} is damaged or comes from elsewhere: give it anew with `bridge connections apply`"
            ) from error
        remember(secret)
        return secret

    def fingerprint(self, secret: str) -> str:
        """Names a credential without telling it; the same on every machine that has the key."""
        return self._derived("fingerprint", secret)[:32]

    def _derived(self, *parts: str) -> str:
        return hmac.new(self.key, "\0".join(parts).encode(), hashlib.sha256).hexdigest()


def open_sealer(settings: Settings, home: Home) -> Sealer:
    """The sealer with the key of BRIDGE_SECRET_KEY or else of the home, where it is made if missing.

    Raises:
        SealingError: what is there is not a key.
    """
    if settings.secret_key is not None:
        return Sealer(_decoded(settings.secret_key.get_secret_value(), "BRIDGE_SECRET_KEY"))
    path = home.keys / "secret.key"
    if not path.exists():
        with file_lock(home.keys / "lock"):
            if not path.exists():
                write_key(path, base64.b64encode(secrets.token_bytes(_KEY_BYTES)) + b"\n")
    return Sealer(_decoded(path.read_text(), str(path)))


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
