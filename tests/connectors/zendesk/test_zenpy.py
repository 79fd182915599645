"""Zendesk's usual Python client works unchanged against the double."""

import pytest
import requests
from requests.adapters import HTTPAdapter
from zenpy import Zenpy
from zenpy.lib.exception import APIException, RecordNotFoundException

from tests.connectors.zendesk.account import EMAIL, TOKEN


class ToLoopback(HTTPAdapter):
    """Carries requests for https://acme.zendesk.com to the double, as a proxy in front of it would."""

    def __init__(self, url: str) -> None:
        super().__init__()
        self._url = url

    def send(self, request: requests.PreparedRequest, **options: object) -> requests.Response:  # type: ignore[override]
        carried = request.copy()
        carried.url = str(request.url).replace("https://acme.zendesk.com", self._url)
        carried.headers["Host"] = "acme.zendesk.com"
        carried.headers["X-Forwarded-Proto"] = "https"
        answer = super().send(carried, **options)  # type: ignore[arg-type]
        answer.request, answer.url = request, str(request.url)
        return answer


@pytest.fixture(scope="module")
def zenpy(calm) -> Zenpy:
    session = requests.Session()
    session.trust_env = False
    session.mount("https://", ToLoopback(calm.url))
    return Zenpy(subdomain="acme", email=EMAIL, token=TOKEN, session=session, disable_cache=True)


def ids(records):
    return {str(record.id) for record in records}


@pytest.mark.parametrize("entity", ["tickets", "users"])
def test_cursor_exports(zenpy, calm, entity):
    truth = calm.truth()
    everything = set(truth["entities"][entity]) | set(truth["deleted"][entity])
    assert ids(getattr(zenpy, entity).incremental(start_time=0)) == everything


def test_time_exports(zenpy, calm):
    truth = calm.truth()
    everything = set(truth["entities"]["tickets"]) | set(truth["deleted"]["tickets"])
    assert ids(zenpy.tickets.incremental(start_time=0, paginate_by_time=True)) == everything
    everything = set(truth["entities"]["accounts"]) | set(truth["deleted"]["accounts"])
    assert ids(zenpy.organizations.incremental(start_time=0)) == everything


def test_lists_and_single_records(zenpy, calm):
    held = calm.truth()["entities"]
    assert ids(zenpy.tickets()) == set(held["tickets"])
    assert ids(zenpy.organizations()) == set(held["accounts"])
    assert ids(zenpy.groups()) == set(held["groups"])
    assert ids(zenpy.users()) <= set(held["users"])
    known = next(iter(held["tickets"]))
    ticket = zenpy.tickets(id=int(known))
    assert str(ticket.id) == known
    assert str(ticket.requester.id) in held["users"]
    for name, entity in (("users", "users"), ("organizations", "accounts"), ("groups", "groups")):
        one = next(iter(held[entity]))
        assert str(getattr(zenpy, name)(id=int(one)).id) == one


def test_comments(zenpy, calm):
    held = set(calm.truth()["entities"]["comments"])
    ticket = next(iter(calm.truth()["entities"]["tickets"]))
    comments = list(zenpy.tickets.comments(ticket=int(ticket)))
    assert comments
    assert ids(comments) <= held


def test_errors(zenpy, calm):
    gone = next(iter(calm.truth()["deleted"]["tickets"]))
    with pytest.raises(RecordNotFoundException):
        zenpy.tickets(id=int(gone))
    with pytest.raises(APIException):
        list(zenpy.tickets.incremental(start_time=99_999_999_999))
