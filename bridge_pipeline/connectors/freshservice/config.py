"""What a connection to Freshservice needs, and what a request proves itself with (vendor-apis B.1)."""

import base64
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, SecretStr, field_validator

from bridge_pipeline.redaction import remember

Plan = Literal["starter", "growth", "pro", "enterprise"]


class FreshserviceConfig(BaseModel):
    """What a connection to Freshservice needs: the address and an agent's API key."""

    model_config = ConfigDict(extra="forbid")

    base_url: str = Field(description="Address of the desk, such as https://acme.freshservice.com")
    api_key: SecretStr = Field(
        description="The API key of an agent whose role and ticket scope cover the whole desk."
    )
    plan: Plan = Field("starter", description="The account's plan, which sets how many requests it may send.")
    all_workspaces: bool = Field(
        False,
        description="Read the tickets of all workspaces; without it those of the primary one are all that "
        "the API lists.",
    )
    lookups_at_once: int = Field(
        4, ge=1, le=8, description="Tickets whose details or conversations are asked for at the same time."
    )
    allow_private: bool = Field(
        False, description="Allow plain http and private or loopback addresses, for test servers."
    )

    @field_validator("base_url")
    @classmethod
    def _plain_address(cls, value: str) -> str:
        parts = urlsplit(value)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError("must be an address such as https://acme.freshservice.com")
        if parts.username or parts.password or parts.query or parts.fragment:
            raise ValueError("must hold no credential, query or fragment; the key goes into api_key")
        return value.rstrip("/").removesuffix("/api/v2")


@dataclass(frozen=True)
class ApiKey:
    """The key as the user of HTTP Basic, whose password says nothing; there is no other key to get."""

    value: str = field(repr=False)

    def headers(self) -> Mapping[str, str]:
        """The `Authorization` header."""
        return {"Authorization": f"Basic {self.value}"}

    def renew(self) -> bool:
        """A key that was refused stays refused."""
        return False


def credentials_of(config: FreshserviceConfig) -> ApiKey:
    """What the requests of a connection prove themselves with; never shown from here on."""
    key = config.api_key.get_secret_value()
    basic = base64.b64encode(f"{key}:X".encode()).decode()
    remember(key)
    remember(basic)
    return ApiKey(basic)
