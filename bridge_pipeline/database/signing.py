"""Signing keys of an installation (Ed25519), and documents signed with them.

A key is one file in the home, named by its fingerprint: the SHA-256 of its public half. Nothing
here decides whether a key is to be trusted; see `steps.chain` and docs/decisions/0009.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import orjson
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)

from bridge_pipeline.connector_kit.journal import listed
from bridge_pipeline.database.keyfile import sync, write_key
from bridge_pipeline.database.locks import file_lock
from bridge_pipeline.failpoints import reach
from bridge_pipeline.naming import Home

SIGNATURE = "signature"


class SigningError(RuntimeError):
    """The key that must sign is not there or is no key; the message says what to do."""


class BadSignature(ValueError):
    """A document does not carry the signature it should."""


@dataclass(frozen=True)
class Signer:
    """One private key."""

    private: Ed25519PrivateKey = field(repr=False)

    @property
    def public_key(self) -> str:
        """The public half, in hexadecimal."""
        return self.private.public_key().public_bytes_raw().hex()

    @property
    def key_id(self) -> str:
        """The fingerprint of the key."""
        return fingerprint(self.public_key)


def fingerprint(public_key: str) -> str:
    """Names a public key: its SHA-256, in hexadecimal."""
    return hashlib.sha256(bytes.fromhex(public_key)).hexdigest()


# --- Documents ----------------------------------------------------------------------------------


def sign(signer: Signer, document: Mapping[str, Any], purpose: str) -> dict[str, Any]:
    """`document` with the fingerprint of the key as `key`, and its `signature`.

    Args:
        purpose: what sort of document it is: a signature holds for that alone.
    """
    # What comes back from a file is what was signed: times and days are texts there.
    plain = orjson.loads(orjson.dumps({**document, "key": signer.key_id}))
    return plain | {SIGNATURE: signer.private.sign(_signed_bytes(plain, purpose)).hex()}


def verify(document: Mapping[str, Any], public_key: str, purpose: str) -> None:
    """Checks that the key signed exactly this document for this purpose.

    Raises:
        BadSignature: it did not.
    """
    plain = {key: value for key, value in document.items() if key != SIGNATURE}
    try:
        signature, public = _hex(document[SIGNATURE]), _hex(public_key)
        if plain.get("key") != fingerprint(public_key):
            raise BadSignature("it is signed with another key")
        Ed25519PublicKey.from_public_bytes(public).verify(signature, _signed_bytes(plain, purpose))
    except BadSignature:
        raise
    except (InvalidSignature, KeyError, ValueError, TypeError) as error:
        raise BadSignature("its signature does not hold") from error


def rendered(document: Mapping[str, Any]) -> bytes:
    """The one way in which a signed document is written: sorted keys, no blanks, no line break."""
    return orjson.dumps(document, option=orjson.OPT_SORT_KEYS)


def _signed_bytes(plain: Mapping[str, Any], purpose: str) -> bytes:
    return f"bridge {purpose}\0".encode() + rendered(plain)


def _hex(text: str) -> bytes:
    data = bytes.fromhex(text)
    if data.hex() != text:
        # One value has one spelling, or a document could be altered and still hold.
        raise ValueError("not written as it is by us")
    return data


# --- Keys ---------------------------------------------------------------------------------------


def ensure_signing_key(home: Home) -> None:
    """Makes the first key of a home; of several processes at once, one does."""
    if not key_ids(home):
        with file_lock(home.keys / "lock"):
            if not key_ids(home):
                _make(home)


def make_signing_key(home: Home) -> Signer:
    """Makes another key. It signs nothing until a chain names it."""
    with file_lock(home.keys / "lock"):
        return _make(home)


def key_ids(home: Home) -> list[str]:
    """The fingerprints of the private keys of a home."""
    return [path.stem for path in listed(home.signing, "*.pem")]


def signer(home: Home, key_id: str) -> Signer:
    """The key with that fingerprint.

    Raises:
        SigningError: the home does not have it, or the file holds something else.
    """
    path = home.signing / f"{key_id}.pem"
    try:
        private = load_pem_private_key(path.read_bytes(), password=None)
    except FileNotFoundError:
        raise SigningError(
            f"the key {key_id[:16]} signs the audit chain, and {path} is not there: bring it back "
            "from the copy of BRIDGE_HOME/keys"
        ) from None
    except (ValueError, TypeError):
        private = None
    if not isinstance(private, Ed25519PrivateKey) or Signer(private).key_id != key_id:
        raise SigningError(f"{path} does not hold the key it is named after: bring back the right file")
    return Signer(private)


def forget(home: Home, key_id: str) -> None:
    """Removes a private key that signs nothing any more; its public half stays in the chains."""
    (home.signing / f"{key_id}.pem").unlink(missing_ok=True)
    reach("signing.forgotten")
    sync(home.signing)


def _make(home: Home) -> Signer:
    made = Signer(Ed25519PrivateKey.generate())
    home.signing.mkdir(mode=0o700, parents=True, exist_ok=True)
    pem = made.private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    write_key(home.signing / f"{made.key_id}.pem", pem)
    return made
