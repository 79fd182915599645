"""What a connection to Zendesk needs, and what a request proves itself with (vendor-apis C.1)."""

import base64
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, SecretStr, field_validator, model_validator

from bridge_pipeline.connector_kit.config import Address, AllowPrivate
from bridge_pipeline.connector_kit.oauth import OAuth, OAuthCredentials
from bridge_pipeline.connector_kit.session import Credentials, SourceContext
from bridge_pipeline.redaction import remember

Plan = Literal["essential", "team", "growth", "professional", "enterprise", "enterprise_plus", "high_volume"]

_TOKENS = "/oauth/tokens"


class ZendeskConfig(BaseModel):
    """What a connection to Zendesk Support needs: an API token, an OAuth client, or an access token."""

    model_config = ConfigDict(extra="forbid")

    base_url: Address = Field(description="Address of the help desk, such as https://acme.zendesk.com")
    email: str | None = Field(
        None, description="E-mail address of the user that the API token acts as; an administrator's."
    )
    api_token: SecretStr | None = Field(None, description="An API token; goes with the e-mail address.")
    client_id: str | None = Field(
        None, description="Identifier of an OAuth client, whose tokens are renewed when they expire."
    )
    client_secret: SecretStr | None = Field(None, description="The secret of that OAuth client.")
    refresh_token: SecretStr | None = Field(
        None,
        description="A refresh token given to that client; without one it asks by its own credentials.",
    )
    access_token: SecretStr | None = Field(
        None, description="An OAuth access token with the scope `read` that does not expire."
    )
    plan: Plan = Field("team", description="The account's plan, which sets how many requests it may send.")
    allow_private: AllowPrivate = False

    @field_validator("base_url")
    @classmethod
    def _without_path_of_the_api(cls, value: str) -> str:
        return value.removesuffix("/api/v2")

    @model_validator(mode="after")
    def _one_credential(self) -> "ZendeskConfig":
        given = [self.api_token, self.client_secret, self.access_token]
        if sum(secret is not None for secret in given) != 1:
            raise ValueError(
                "give one of api_token (with email), client_secret (with client_id) and access_token"
            )
        if self.api_token is not None and not self.email:
            raise ValueError("api_token needs email: the address of the user it acts as")
        if self.client_secret is not None and not self.client_id:
            raise ValueError("client_secret needs client_id")
        if self.refresh_token is not None and self.client_secret is None:
            raise ValueError("refresh_token needs client_id and client_secret")
        return self


def _oauth(config: ZendeskConfig) -> OAuth:
    """Tokens live from five minutes to two days, and are renewed in the midst of a run (C.1)."""
    assert config.client_secret is not None
    client = {
        "client_id": str(config.client_id),
        "client_secret": config.client_secret.get_secret_value(),
        "scope": "read",
    }
    if config.refresh_token is None:
        return OAuth(_TOKENS, client, {"grant_type": "client_credentials"}, encoding="json")
    return OAuth(_TOKENS, client, refresh_token=config.refresh_token.get_secret_value(), encoding="json")


@dataclass(frozen=True)
class FixedHeader:
    """One `Authorization` header for all requests; there is no other to get."""

    value: str = field(repr=False)

    def headers(self) -> Mapping[str, str]:
        """The header."""
        return {"Authorization": self.value}

    def renew(self) -> bool:
        """A token that was refused stays refused."""
        return False


def credentials_of(config: ZendeskConfig, context: SourceContext) -> Credentials:
    """What the requests of a connection prove themselves with; never shown from here on.

    Raises:
        AddressRefused: the address is not allowed.
    """
    if config.client_secret is not None:
        return OAuthCredentials(context, config.base_url, config.allow_private, _oauth(config))
    if config.access_token is not None:
        token = config.access_token.get_secret_value()
        remember(token, sent=True)
        return FixedHeader(f"Bearer {token}")
    assert config.api_token is not None
    token = config.api_token.get_secret_value()
    basic = base64.b64encode(f"{config.email}/token:{token}".encode()).decode()
    remember(token, sent=True)
    remember(basic, sent=True)
    return FixedHeader(f"Basic {basic}")
