"""Who wrote an entry of the journal: the users behind its login names.

`sys_journal_field.sys_created_by` is the login of a user and not the key (vendor-apis D.3). How the
instance is asked is `client`.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import Any
from urllib.parse import quote

from bridge_pipeline.connector_kit.pages import PageContent
from bridge_pipeline.connectors.servicenow.streams import AUTHOR, is_key

# Takes a name for the request and logins; gives what can be seen of users with one of them.
AskUsers = Callable[[str, list[str]], Iterable[Any]]
LOGIN = "user_name"
_WRITTEN_BY = "sys_created_by"
# Longer lists could make an address that the instance refuses; it holds about 10,000 characters (D.2).
_AT_ONCE = 50
_CHARACTERS_AT_ONCE = 5_000
# `^` ends a term of a query, and `,` parts the items of a list.
_NOT_IN_A_LIST = ("^", ",")


class Authors:
    """The users behind logins; each login is asked for once."""

    def __init__(self) -> None:
        self._known: dict[str, str | None] = {}

    def named(self, content: PageContent, name: str, ask: AskUsers) -> PageContent:
        """A page of entries, with the key of a user as `author` in each that exactly one user wrote.

        Args:
            name: of the page, from which its requests are named.

        Raises:
            SourceError: the source did not answer.
        """
        new = sorted({login for each in content.records if (login := _login(each))} - self._known.keys())
        start = 0
        for logins in _lists(new):
            self._learn(logins, ask(f"{name}-by{start}", logins))
            start += len(logins)
        return replace(content, records=[self._signed(record) for record in content.records])

    def _learn(self, logins: list[str], users: Iterable[Any]) -> None:
        found: dict[str, set[str]] = {login: set() for login in logins}
        for user in users:
            login, key = (user.get(LOGIN), user.get("sys_id")) if isinstance(user, dict) else (None, None)
            # An instance that drops what it does not understand gives others too (D.2).
            if isinstance(login, str) and login in found and isinstance(key, str) and is_key(key):
                found[login].add(key)
        self._known |= {login: min(keys) if len(keys) == 1 else None for login, keys in found.items()}

    def _signed(self, record: Any) -> Any:
        author = self._known.get(_login(record) or "")
        return record if author is None else {**record, AUTHOR: author}


def _lists(logins: list[str]) -> Iterator[list[str]]:
    """Logins in lists that an address can hold."""
    some, size = list[str](), 0
    for login in logins:
        length = len(quote(login)) + 1
        if some and (len(some) == _AT_ONCE or size + length > _CHARACTERS_AT_ONCE):
            yield some
            some, size = [], 0
        some.append(login)
        size += length
    if some:
        yield some


def _login(record: Any) -> str | None:
    """The login of an entry, where it can be asked for."""
    login = record.get(_WRITTEN_BY) if isinstance(record, dict) else None
    if not isinstance(login, str) or any(sign in login for sign in _NOT_IN_A_LIST):
        return None
    if len(quote(login)) >= _CHARACTERS_AT_ONCE:
        return None
    return login or None
