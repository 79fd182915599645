"""An answer's outline says what parsing it says; records are parsed when somebody looks at them."""

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bridge_pipeline.connector_kit import outline as outlines
from bridge_pipeline.connector_kit import pages
from bridge_pipeline.connector_kit.outline import Reader, outline
from bridge_pipeline.connector_kit.pages import UnreadableBody, parse_list
from tests.unit.test_pages import NAMES, bodies, same

SAID = ("more", "total_pages", "total", "envelope")
LISTS = b'{"page":1,"data":[{"id":1,"s":"}],\\"["},{"id":2,"x":{"id":[3]}}, 7 ],"more":true,"count":2}'
PIECES = [b'"', b"\\", b"{", b"}", b"[", b"]", b",", b":", b"0", b"1e999", b"NaN", b"\xff", b"\\ud800", b" "]
PIECES += [
    b'"error":"no",',
    b'"errors":[],',
    b'"error":null,',
    b'"status":"failure",',
    b'"err\\u006fr":[{}],',
]
PIECES += [b'"data":[]', b'"more":false,', b"\xef\xbb\xbf", b"\\u0000", b"\\u003a", b"2" * 30]


def said(content):
    return [repr(getattr(content, name)) for name in SAID]


def agrees(body):
    """Whether there is an outline; it says what parsing says, and gives the bytes that splitting gives."""
    try:
        found = outline(body, NAMES)
    except UnreadableBody as error:
        with pytest.raises(type(error), match=re.escape(str(error))):
            parse_list(body, NAMES)
        return False
    if found is None:
        return False
    content, exact = found
    parsed = parse_list(body, NAMES)
    assert said(content) == said(parsed)
    assert [bytes(each) for each in exact] == pages.exact_records(body, NAMES)
    assert len(exact) == len(parsed.records)
    return True


@given(bodies())
def test_an_outline_says_what_parsing_says(case):
    _, body = case
    # A bare array has none.
    assert agrees(body) == (body.strip(b"\xef\xbb\xbf \r\n\t")[:1] == b"{")


@settings(max_examples=500)
@given(st.data())
def test_so_does_that_of_a_damaged_answer_or_there_is_none(data):
    body = bytearray(LISTS)
    for _ in range(data.draw(st.integers(1, 3))):
        begin = data.draw(st.integers(0, len(body)))
        end = min(len(body), begin + data.draw(st.integers(0, 4)))
        body[begin:end] = data.draw(st.sampled_from([b"", *PIECES]))
    agrees(bytes(body))


KEYS = ["error", "errors", "err\\u006fr", "status", "statu\\u0073", "page", "meta", "data", "tickets"]
VALUES = ["null", '""', '"no"', "[]", "{}", "[{}]", "0", "1e999", "NaN", '"failure"', '"a:b"', '{"error":1}']
RECORDS = ["[]", '[{"id":1,"error":"own","status":"failure"}]', '[{"id":1},NaN]', '[{"id":1,"id":2}]']


@given(
    st.lists(st.tuples(st.sampled_from(KEYS), st.sampled_from(VALUES)), max_size=5),
    st.sampled_from(RECORDS),
    st.integers(0, 5),
)
def test_so_does_that_of_an_answer_that_says_it_failed(members, records, place):
    written = [f'"{key}":{value}' for key, value in members]
    written.insert(place, f'"data":{records}')
    agrees(f"{{{','.join(written)}}}".encode())


@pytest.mark.parametrize(
    "body",
    [
        b'[{"id":1}]',
        b'{"data":[{"id":1}],"data":[{"id":2}]}',
        b'{"more":true,"data":[{"id":1}],"more":true}',
        b'{"data":[{"id":1}],"tickets":[{"id":2}]}',
        b'{"data":{"id":1}}',
        b'{"data":[{"id":1}]',
        b'{"data":[{"id":NaN}]}',
        b'{"a\\u003ab":1,"data":[]}',
        # What is lost of the one is made up by the other.
        b'{"data":[{"id":1}],"data":[{"id":2}],"\\u003a\\u003a":0}',
        b'{"data":[' + b"[" * 100_000 + b"]" * 100_000 + b"]}",
        b"<html>",
        b"",
    ],
)
def test_what_is_not_plain_has_none(body):
    assert outline(body, NAMES) is None


def test_an_answer_with_the_bytes_of_an_earlier_one_says_the_same():
    reader = Reader(NAMES)
    body = b'{"data":[{"id":1},{"id":2}],"more":true,"total_pages":7,"count":9}'
    first, again = reader.parse_list(body), reader.parse_list(bytes(bytearray(body)))
    assert list(again.records) == list(first.records) == [{"id": 1}, {"id": 2}]
    assert list(again.exact) == list(first.exact) == [b'{"id":1}', b'{"id":2}']
    assert (again.more, again.total_pages, again.total, again.digest) == (True, 7, 9, first.digest)


def test_records_are_parsed_when_they_are_looked_at(monkeypatch):
    parsed = []
    monkeypatch.setattr(
        outlines, "parse_list", lambda body, names: parsed.append(body) or parse_list(body, names)
    )
    body = b'{"data":[{"id":1},{"id":1e999}],"more":true}'
    content = Reader(NAMES).parse_list(body)
    assert (len(content.records), content.more) == (2, True)
    assert body not in parsed
    assert same(content.records[0], {"id": 1})
    assert content.records[1].raw == content.exact[1]
    assert parsed.count(body) == 1


def test_an_answer_without_an_outline_is_read_at_once_each_time():
    reader = Reader(NAMES)
    body = b'{"data":[{"id":1},{"id":2,"x":NaN}]}'
    contents = [reader.parse_list(body) for _ in range(2)]
    assert [content.digest for content in contents] == [None, None]
    assert contents[0].records == contents[1].records
    with pytest.raises(UnreadableBody):
        reader.parse_list(body[:-1])


def test_of_an_envelope_only_what_it_says_of_further_pages_is_kept():
    reader = Reader(NAMES)
    for page in (1, 2, 1):
        content = reader.parse_list(b'{"data":[],"page":%d,"count":9,"links":{"self":"much"}}' % page)
        assert (content.total, content.envelope) == (9, {})
