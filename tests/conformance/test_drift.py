"""A change of the vendor's payload is seen: each column's fields are declared, and nothing new is lost."""

import re
from dataclasses import replace

import pytest

from bridge_pipeline.steps.drift import compare, declared, others
from tests.conformance.faultproxy import proxying
from tests.conformance.reading import extract

# Without them a record is rejected, which is seen by other means.
_VITAL = ("id", "updated_at")


@pytest.fixture
def proxy(simulator):
    with proxying(simulator.url) as proxy:
        yield proxy


def renaming(keys):
    """Sends members with these keys under other names."""
    names = re.compile(rb'"(%b)"(\s*:)' % b"|".join(re.escape(key.encode()) for key in keys))
    return lambda answer: type(answer)(
        answer.status, names.sub(rb'"\1_moved"\2', answer.body), answer.headers
    )


def test_a_vanished_field_is_seen_whichever_column_it_was_read_from(subject, proxy, folder):
    stream = subject.connector.stream(subject.entity)
    before = extract(subject, proxy.url, subject.entity, folder / "before").inventory
    vital = {key for column in _VITAL for key in stream.keys[column]}
    columns = [
        name for name, keys in stream.keys.items() if not vital & set(keys) and name not in before.absent
    ]
    assert columns, "a stream's fields must say what they read: Field.consumes or Field.reads"
    for column in columns:
        proxy.rewrite = renaming(stream.keys[column])
        now = extract(subject, proxy.url, subject.entity, folder / column).inventory
        changes = compare(now, [(before, False)], declared(stream)).changes
        gone = {change.field.removeprefix("/") for change in changes if change.change.startswith("vanished")}
        assert gone & set(stream.keys[column]), f"{column}: nobody saw that {stream.keys[column]} vanished"


def test_a_new_field_is_seen_and_kept(subject, proxy, folder):
    stream = subject.connector.stream(subject.entity)
    key = stream.keys["subject" if "subject" in stream.keys else "name"][0]
    before = extract(subject, proxy.url, subject.entity, folder / "before").inventory
    named = b'"%b":' % key.encode()
    proxy.rewrite = lambda answer: replace(
        answer, body=answer.body.replace(named, b'"brand_new":[1],' + named)
    )
    found = extract(subject, proxy.url, subject.entity, folder / "after")
    changes = compare(found.inventory, [(before, False)], others(stream)).changes
    assert ("/brand_new", "new") in {(change.field, change.change) for change in changes}
    assert found.custom_fields
    assert all('"brand_new":[1]' in fields for fields in found.custom_fields.values())
