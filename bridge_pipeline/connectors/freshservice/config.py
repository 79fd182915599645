"""What a connection to Freshservice needs, and what a request proves itself with (vendor-apis B.1)."""

import base64
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, SecretStr

from bridge_pipeline.connector_kit.config import Address, AllowPrivate
from bridge_pipeline.connectors.freshservice.paging import MOST_ROWS
from bridge_pipeline.redaction import remember

# People paste the address of the API.
_Desk = Annotated[Address, AfterValidator(lambda address: address.removesuffix("/api/v2"))]
Plan = Literal["starter", "growth", "pro", "enterprise"]


class FreshserviceConfig(BaseModel):
    """What a connection to Freshservice needs: the address and an agent's API key."""

    model_config = ConfigDict(extra="forbid")

    base_url: _Desk = Field(description="Address of the desk, such as https://acme.freshservice.com")
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
    page_size: int = Field(MOST_ROWS, ge=1, le=MOST_ROWS, description="Records per page of a list.")
    allow_private: AllowPrivate = False


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
    remember(key, sent=True)
    remember(basic, sent=True)
    return ApiKey(basic)
