"""A request sees of a record what `select` and `locales` name."""

from typing import Any

import pytest

from bridge_pipeline.connector_kit.simulator import RunningSimulator
from tests.connectors.helpdesk.simulator.reader import ask, page_of


def test_without_select_related_objects_are_stubs(calm: RunningSimulator) -> None:
    ticket = page_of(calm, "tickets")["data"][0]
    assert ticket["_type"] == "Ticket"
    for related in ("status", "priority", "type", "account", "customer_user", "last_event"):
        assert set(ticket[related]) == {"id", "_type"}
    assert all(set(event) == {"id", "_type"} for event in ticket["events"])
    assert page_of(calm, "tickets", select="*")["data"][0] == ticket


@pytest.mark.parametrize(
    ("select", "shape"),
    [
        ("status.name", {"status": {"name"}}),
        ("subject", {"subject": None}),
        ("status.name,status.closed", {"status": {"name", "closed"}}),
        ("status", {"status": set()}),
        ("account.*", {"account": {"name", "number", "active", "country", "website", "account_manager"}}),
        ("customer_user.account.name", {"customer_user": {"account"}}),
        ("no_such_field,subject.no_such", {"subject": None}),
    ],
)
def test_select_gives_what_it_names_with_id_and_type(
    calm: RunningSimulator, select: str, shape: dict[str, set[str] | None]
) -> None:
    ticket = page_of(calm, "tickets", select=select)["data"][0]
    assert set(ticket) == {"id", "_type", *shape}
    for name, members in shape.items():
        if members is not None:
            expected = {"id", "_type", *members}
            assert set(ticket[name]) - {"created_at", "updated_at"} == expected


def test_dotted_paths_reach_through_related_objects_and_lists(calm: RunningSimulator) -> None:
    select = "*,customer_user.account.name,events.comment,events.event_changes"
    ticket = page_of(calm, "tickets", select=select)["data"][0]
    account = ticket["customer_user"]["account"]
    assert account["name"] == ask(calm, f"/api/v1/accounts/{account['id']}.json").json()["data"]["name"]
    assert all(set(event) == {"id", "_type", "comment", "event_changes"} for event in ticket["events"])
    assert ticket["subject"]


def test_users_come_with_roles_and_a_number_that_is_not_their_id(calm: RunningSimulator) -> None:
    for user in page_of(calm, "users", select="*,roles.name,title.name,account.name")["data"]:
        assert user["number"] != user["id"]
        assert all(role["name"] for role in user["roles"])
        assert user["account"]["name"]
        assert user["title"] is None or user["title"]["name"]


def test_locales_turn_translatable_names_into_objects(calm: RunningSimulator) -> None:
    def status_names(locales: str) -> list[Any]:
        page = page_of(calm, "tickets", select="status.name,account.name", locales=locales)
        assert all(isinstance(row["account"]["name"], str) for row in page["data"] if row["account"])
        return [row["status"]["name"] for row in page["data"]]

    assert {"en": "Completed", "fr": "Confirmé", "de": "Quittiert", "es": "Compleatdo"} in status_names(
        "true"
    )
    assert {"fr": "Confirmé"} in status_names("fr,xx")
