"""The parts that connectors' configs share: the address of the source, and which addresses it may have.

Each connector declares its own config; credentials are its `SecretStr` fields.
"""

from typing import Annotated
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field


def plain_address(value: str) -> str:
    """`value` without a slash at its end, if it is an http(s) address and nothing else stands in it.

    Raises:
        ValueError: it is no such address, or holds a credential, query or fragment.
    """
    try:
        parts = urlsplit(value)
        sound = parts.hostname and parts.port != 0
    except ValueError:
        raise ValueError("must be an address such as https://desk.example.com") from None
    if parts.scheme not in ("http", "https") or not sound:
        raise ValueError("must be an address such as https://desk.example.com")
    if parts.username or parts.password or parts.query or parts.fragment:
        raise ValueError("must hold no credential, query or fragment; credentials have fields of their own")
    return value.rstrip("/")


Address = Annotated[str, AfterValidator(plain_address)]
AllowPrivate = Annotated[
    bool, Field(description="Allow plain http and private or loopback addresses, for test servers.")
]
