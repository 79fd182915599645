"""Tenants: from the file that declares connections to who is told of what.

Addresses are personal, and URLs of chat services are credentials: they are sealed for the database
and shown only masked.
"""

from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import sqlalchemy as sa
from pydantic import BaseModel, ConfigDict, Field, SecretStr

from bridge_pipeline.database import outbox, readers, registry
from bridge_pipeline.database import tables as t
from bridge_pipeline.database.engine import transaction
from bridge_pipeline.database.outbox import MAIL, Reviewer
from bridge_pipeline.database.sealing import SealingError
from bridge_pipeline.database.workspace import Workspace
from bridge_pipeline.redaction import remember
from bridge_pipeline.steps.connect import (
    Action,
    InvalidConnections,
    Key,
    expanded,
    hidden_in_errors,
    items_of,
    validated,
)
from bridge_pipeline.steps.mail import mail_address
from bridge_pipeline.steps.notify import checked_url

ADDRESS = "address"


@dataclass(frozen=True)
class ReviewerDraft:
    """Someone to be told, with the address in clear: a mail address, or an Apprise URL."""

    channel: str
    address: str = field(repr=False)
    events: tuple[str, ...]
    variables: tuple[str, ...] = ()

    @property
    def shown(self) -> str:
        """The address as others may see it."""
        if self.channel != MAIL:
            return f"{self.channel}://…"
        local, _, domain = self.address.rpartition("@")
        return f"{local[0] if len(local) > 2 else ''}…@{domain}"


@dataclass(frozen=True)
class TenantDraft:
    """A checked tenant, not yet written anywhere. What is None stays as it is."""

    name: str
    reviewers: tuple[ReviewerDraft, ...] | None
    show_personal_data: bool | None = None


@dataclass(frozen=True)
class AppliedTenant:
    """What `apply_tenants` did; `reviewers` is how many there are now."""

    tenant: str
    action: Action
    reviewers: int


class _Reviewer(BaseModel):
    model_config = ConfigDict(extra="forbid")

    to: SecretStr
    on: tuple[Literal["blocked", "failed", "daily", "weekly"], ...] = Field(min_length=1)


class _Tenant(BaseModel):
    """One item of the file's list `tenants`."""

    model_config = ConfigDict(extra="forbid")

    name: Key
    show_personal_data: bool | None = None
    reviewers: list[Any] | None = None


def parse_tenants(path: Path, environ: Mapping[str, str]) -> list[TenantDraft]:
    """Reads the tenants of a file of connections. `variables_of` names what to take from the environment.

    Raises:
        InvalidConnections: the file cannot be read, or something in it is wrong.
    """
    items = items_of(path, "tenants")
    drafts = [_draft(item, number, environ) for number, item in enumerate(items, start=1)]
    names = [draft.name for draft in drafts]
    if repeated := sorted({name for name in names if names.count(name) > 1}):
        raise InvalidConnections(f"{path} declares more than once: {', '.join(repeated)}")
    return drafts


def variables_of(drafts: Iterable[TenantDraft]) -> set[str]:
    """The environment variables that addresses came from."""
    return {name for draft in drafts for each in draft.reviewers or () for name in each.variables}


def apply_tenants(workspace: Workspace, drafts: list[TenantDraft]) -> list[AppliedTenant]:
    """Writes tenants that are new or differ, addresses sealed. Their list of reviewers is replaced."""
    with transaction(workspace.database.engine, "tenants") as connection:
        return [_apply(workspace, connection, draft) for draft in drafts]


def remove_tenant(workspace: Workspace, name: str) -> None:
    """Removes a tenant's login, reviewers and messages; the tenant is not listed any more.

    Removing it again changes nothing.

    Raises:
        UnknownTenant: there is none of that name.
        TenantInUse: it has connections, perhaps disabled ones.
    """
    with transaction(workspace.database.engine, "tenants.removal") as connection:
        registry.remove_tenant(connection, name)
        readers.drop_login(connection, readers.role_of(name))
        outbox.forget_tenant(connection, name)


def _apply(workspace: Workspace, connection: sa.Connection, draft: TenantDraft) -> AppliedTenant:
    created = registry.ensure_tenant(connection, draft.name)
    changed = _put_setting(connection, draft)
    known = outbox.reviewers_of(connection, draft.name)
    if draft.reviewers is not None:
        names = _names(workspace, connection, draft.name)
        listed = {_reviewer(workspace, draft.name, each, names): each for each in draft.reviewers}
        changed = changed or set(listed) != set(known)
        # Also where nothing differs: a lost key is healed by applying again.
        boxes = {
            reviewer: workspace.sealer.seal(each.address, draft.name, reviewer.id, ADDRESS)
            for reviewer, each in listed.items()
        }
        outbox.put_reviewers(connection, draft.name, boxes)
        known = list(listed)
    return AppliedTenant(
        draft.name, "created" if created else "changed" if changed else "unchanged", len(known)
    )


def _put_setting(connection: sa.Connection, draft: TenantDraft) -> bool:
    """Writes whether personal data is shown; says whether it was otherwise."""
    if draft.show_personal_data is None:
        return False
    shown = t.tenants.c.show_personal_data
    differs = sa.and_(t.tenants.c.name == draft.name, shown.is_distinct_from(draft.show_personal_data))
    update = t.tenants.update().where(differs).values(show_personal_data=draft.show_personal_data)
    return connection.execute(update).rowcount > 0


def _names(workspace: Workspace, connection: sa.Connection, tenant: str) -> dict[str, str]:
    """The ids of a tenant's reviewers, by address; some may come from a key that is gone."""
    names = {}
    for number, box in outbox.addresses_of(connection, tenant).items():
        with suppress(SealingError):
            names[workspace.sealer.unseal(box, tenant, number, ADDRESS)] = number
    return names


def _reviewer(workspace: Workspace, tenant: str, draft: ReviewerDraft, names: Mapping[str, str]) -> Reviewer:
    # A name for the address that tells nothing of it, and differs from tenant to tenant.
    number = workspace.sealer.fingerprint(f"{tenant}/{draft.address}")[:16]
    number = names.get(draft.address, number)
    return Reviewer(number, draft.channel, draft.shown, draft.events, draft.variables)


# --- The file ---------------------------------------------------------------------------------


def _draft(item: Any, number: int, environ: Mapping[str, str]) -> TenantDraft:
    name = item.get("name") if isinstance(item, dict) else None
    place = f"tenant {name!r}" if isinstance(name, str) else f"tenant number {number}"
    entry = validated(_Tenant, item, place, "")
    if entry.reviewers is None:
        return TenantDraft(entry.name, None, entry.show_personal_data)
    listed = [
        _listed(each, f"{place}: reviewers[{index}]", environ) for index, each in enumerate(entry.reviewers)
    ]
    addresses = [each.address for each in listed]
    for index, address in enumerate(addresses):
        if address in addresses[:index]:
            raise InvalidConnections(
                f"{place}: reviewers[{index}]: this address is listed before; give it one entry"
            )
    return TenantDraft(entry.name, tuple(listed), entry.show_personal_data)


def _listed(item: Any, place: str, environ: Mapping[str, str]) -> ReviewerDraft:
    used: set[str] = set()
    # YAML 1.1 reads a bare `on` as true.
    item = (
        {"on" if key is True else key: value for key, value in item.items()}
        if isinstance(item, dict)
        else item
    )
    whole = expanded(item, environ, place, "", used)
    with hidden_in_errors(environ[name] for name in used):
        entry = validated(_Reviewer, whole, place, "")
        channel, address = _address(entry.to.get_secret_value().strip(), place)
    return ReviewerDraft(channel, address, tuple(dict.fromkeys(entry.on)), tuple(sorted(used)))


def _address(text: str, place: str) -> tuple[str, str]:
    remember(text)
    try:
        if "://" in text:
            return checked_url(text), text
        address = mail_address(text)
    except ValueError as error:
        raise InvalidConnections(f"{place}: to: {error}") from None
    remember(address)
    return MAIL, address
