"""Bodies are taken apart so that nothing is changed and a bad record never harms its neighbours."""

import functools
import json
import re
import sys
import time
from decimal import Decimal
from uuid import UUID

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridge_pipeline import redaction
from bridge_pipeline.connector_kit import pages
from bridge_pipeline.connector_kit.outline import Reader
from bridge_pipeline.connector_kit.pages import (
    FailedAnswer,
    PageContent,
    Rejected,
    UnreadableBody,
    exact_records,
    parse_list,
    parse_record,
    parse_single,
    values_under,
    with_members,
    without_members,
)

NAMES = ("data", "tickets")
ENVELOPES = {
    "array": b"%b",
    "data": b'{"data":%b}',
    "named": b'{"tickets" : %b }',
    "paged": b'{"page":1,"more":true,"total_pages":3,"data":%b,"count":7}',
    "list last": b'{"meta":{"data":[1,{"data":[2]}],"s":"]}\\"["},"data":%b}',
    "list first": b' \r\n{"data":%b,"meta":{"tickets":[{}],"data":null}}\n',
    "escaped name": b'{"d\\u0061ta":%b}',
    "byte order mark": b"\xef\xbb\xbf%b",
}

texts = st.text(st.characters(exclude_characters="\x00", exclude_categories=["Cs"]), max_size=8)
scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | texts
    | st.sampled_from([2**63, 2**64, 2**70, -(2**80), 10**18, "}", "[", '"', "\\", "a:b", ",", "1e999"])
)
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=8,
)
blanks = st.text(" \t\r\n", max_size=2)


def spaced(value, draw):
    """JSON of `value` with blanks wherever they may stand."""

    def around(text):
        return draw(blanks) + text + draw(blanks)

    if isinstance(value, list):
        return around("[" + (",".join(spaced(v, draw) for v in value) or draw(blanks)) + "]")
    if isinstance(value, dict):
        members = (f"{around(json.dumps(k))}:{spaced(v, draw)}" for k, v in value.items())
        return around("{" + (",".join(members) or draw(blanks)) + "}")
    return around(json.dumps(value, ensure_ascii=draw(st.booleans())))


@st.composite
def bodies(draw):
    records = draw(st.lists(values, max_size=4))
    envelope = draw(st.sampled_from(sorted(ENVELOPES)))
    return records, ENVELOPES[envelope] % spaced(records, draw).encode()


def same(left, right):
    """Equal and of the same types; `1 == True == 1.0` in Python."""
    return repr(left) == repr(right)


@given(bodies())
def test_any_list_of_values_comes_back_as_it_was(case):
    records, body = case
    assert same(parse_list(body, NAMES).records, records)


@given(bodies())
def test_the_exact_bytes_of_records_mean_the_same(case):
    records, body = case
    slices = exact_records(body, NAMES)
    assert same([json.loads(raw) for raw in slices], records)
    assert all(raw in body and raw == raw.strip() for raw in slices)


@given(bodies())
def test_splitting_gives_what_parsing_in_one_go_gives(case):
    _, body = case
    fast, split = parse_list(body, NAMES), pages._parse_split(body.removeprefix(b"\xef\xbb\xbf"), NAMES)
    assert same(fast.records, split.records)
    assert (fast.more, fast.total_pages, fast.total) == (split.more, split.total_pages, split.total)


@given(bodies(), st.data())
def test_a_body_cut_anywhere_is_never_an_answer(case, data):
    _, body = case
    whole = body.rstrip()
    cut = whole[: data.draw(st.integers(0, len(whole) - 1))]
    with pytest.raises(UnreadableBody):
        parse_list(cut, NAMES)


def test_every_cut_of_a_page_with_bad_records_is_found():
    body = b'{"more":true,"data":[{"id":1,"n":NaN},{"id":2,"s":"\\ud800 ]}"},{"id":3}],"total_pages":2}'
    assert len(parse_list(body, NAMES).records) == 3
    for end in range(len(body)):
        with pytest.raises(UnreadableBody):
            parse_list(body[:end], NAMES)


DEEP = 501
BAD = {
    "literal NaN": (b'{"id":5,"n":NaN}', "not_a_number", "", None),
    "literal Infinity": (b'{"id":5,"n":-Infinity}', "not_a_number", "", None),
    "beyond a double": (b'{"id":5,"n":[0,1e400]}', "number_out_of_range", "/n/1", "5"),
    "beyond a double, signed": (b'{"id":5,"n":-1.5E+999}', "number_out_of_range", "/n", "5"),
    "too many digits": (b'{"id":5,"n":' + b"9" * 5000 + b"}", "number_out_of_range", "/n", "5"),
    "lone surrogate": (b'{"id":5,"a/b":{"c~":"\\ud800"}}', "lone_surrogate", "/a~1b/c~0", "5"),
    "lone surrogate in a key": (b'{"id":5,"k":{"\\udfff":1}}', "lone_surrogate", "/k", "5"),
    "NUL": (b'{"id":5,"s":"a\\u0000b"}', "nul_character", "/s", "5"),
    "NUL in a key": (b'{"id":5,"\\u0000":1}', "nul_character", "", "5"),
    "NUL and a big integer": (b'{"id":5,"n":99999999999999999999,"s":"\\u0000"}', "nul_character", "/s", "5"),
    "raw NUL": (b'{"id":5,"s":"\x00"}', "invalid_json", "", None),
    "raw control character": (b'{"id":5,"s":"\x1f"}', "invalid_json", "", None),
    "invalid UTF-8": (b'{"id":5,"s":"\xff"}', "invalid_utf8", "", None),
    "surrogate in UTF-8": (b'{"id":5,"s":"\xed\xa0\x80"}', "invalid_utf8", "", None),
    "too deep": (b'{"id":5,"n":' + b"[" * DEEP + b"]" * DEEP + b"}", "too_deep", "", None),
    "far too deep": (b'{"id":5,"n":' + b'{"a":' * 99_999 + b"1" + b"}" * 99_999 + b"}", "too_deep", "", None),
    "missing comma": (b'{"id":5 "s":1}', "invalid_json", "", None),
    "missing value": (b'{"id":}', "invalid_json", "", None),
    "single quotes": (b"{'id':5}", "invalid_json", "", None),
    "wrong bracket": (b'{"id":5]', "invalid_json", "", None),
    "trailing comma": (b'{"id":5,}', "invalid_json", "", None),
    "bare word": (b"undefined", "invalid_json", "", None),
    "leading zero": (b'{"id":05}', "invalid_json", "", None),
    "nothing": (b"", "invalid_json", "", None),
    "repeated key": (b'{"id":5,"status":"new","status":"old"}', "repeated_key", "", None),
    "repeated key, NUL in it": (b'{"\\u0000":1,"\\u0000":2}', "repeated_key", "", None),
    "repeated key inside": (b'{"id":5,"a":[{"b":1,"c":2,"b":3}]}', "repeated_key", "", None),
    "repeated key, equal in Python": (b'{"id":5,"a":1,"a":true}', "repeated_key", "", None),
    "repeated key, made up for by a colon": (b'{"id":5,"a":1,"a":2,"s":"\\u003a"}', "repeated_key", "", None),
    "beyond what is held exactly": (b'{"id":5,"n":1e-4001}', "number_out_of_range", "/n", "5"),
    "exponent beyond all bounds": (b'{"id":5,"n":1e-99999999999999999999}', "number_out_of_range", "/n", "5"),
    "repeated key, long integer": (b'{"id":5,"id":99999999999999999999}', "repeated_key", "", None),
}


def at_depth(frames, work):
    return at_depth(frames - 1, work) if frames else work()


@pytest.mark.parametrize("frames", [0, 600])
def test_what_is_accepted_does_not_depend_on_the_stack_it_is_parsed_on(frames):
    raw = b'{"id":5,"n":' + b"[" * 490 + b"]" * 490 + b"}"
    assert isinstance(at_depth(frames, lambda: parse_record(raw)), dict)


@pytest.mark.parametrize("limit", [0, 640])
def test_what_is_accepted_does_not_depend_on_the_interpreters_limit_of_digits(limit, request):
    request.addfinalizer(functools.partial(sys.set_int_max_str_digits, sys.get_int_max_str_digits()))
    sys.set_int_max_str_digits(limit)
    bad = parse_record(b'{"n":' + b"9" * 5_000 + b"}")
    assert isinstance(bad, Rejected)
    assert bad.reason == "number_out_of_range"


@pytest.mark.parametrize("envelope", sorted(ENVELOPES))
@pytest.mark.parametrize("name", sorted(BAD))
def test_a_bad_record_is_rejected_with_its_bytes_and_its_neighbours_survive(name, envelope):
    raw, reason, pointer, record_id = BAD[name]
    body = ENVELOPES[envelope] % (b'[{"id":1},' + raw + b' , {"id":3}]')
    first, bad, last = parse_list(body, NAMES).records
    assert (first, last) == ({"id": 1}, {"id": 3})
    assert isinstance(bad, Rejected)
    assert (bad.raw, bad.reason, bad.pointer, bad.record_id) == (raw, reason, pointer, record_id)
    assert "\x00" not in bad.detail
    assert bad.detail.isascii()


@pytest.mark.parametrize(
    "raw",
    [
        '{"s":"\\ud83d\\ude00 😀 \\\\u0000"}',
        '{"a":1,"a":1,"b":{"a":2}}',
        '{"a":"\\u003a\\u003a"}',
        '{"n":-0.0,"m":1E2,"k":1e-300,"i":9223372036854775807,"j":18446744073709551615}',
        '{"n":123456789012345678901234567890}',
        '{"n":' + "[" * 400 + "]" * 400 + "}",
        '{"uuid":"3e999-12345678901234567890123"," n":" 1e999"}',
        "{}",
        "0",
        '""',
        "null",
        "[]",
        "false",
    ],
)
def test_odd_but_sound_records_are_kept_exactly(raw):
    body = f'[{raw},{{"id":1}}]'.encode()
    assert same(parse_list(body, NAMES).records, [json.loads(raw), {"id": 1}])


@pytest.mark.parametrize(
    "number",
    ["0.1234567890123456789", "1234567890123.45678", "1e-400", "9007199254740993.0"],
)
def test_a_number_that_no_double_holds_keeps_its_digits(number):
    for body in (f'[{{"n":{number}}}]', f'{{"data":[{{"n": {number}}}]}}', f'[{{"n":[1,{number}]}}]'):
        (record,) = parse_list(body.encode(), NAMES).records
        found = record["n"][1] if isinstance(record["n"], list) else record["n"]
        assert (type(found), found) == (Decimal, Decimal(number))


@pytest.mark.parametrize(
    "number", ["0.30000000000000004", "100.000000000000000000", "1.7976931348623157e308"]
)
def test_long_numbers_that_a_double_holds_do_not_slow_a_page_down(number):
    content = parse_list(f'[{{"n":{number}}}]'.encode(), NAMES)
    assert (content.records, content.exact) == ([{"n": float(number)}], None)


def test_duplicate_commas_reject_nothing_but_the_gap():
    records = parse_list(b'[{"id":1},,{"id":2},]', NAMES).records
    assert [record if isinstance(record, dict) else record.reason for record in records] == [
        {"id": 1},
        "invalid_json",
        {"id": 2},
        "invalid_json",
    ]


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b" \r\n",
        b"\xef\xbb\xbf",
        b"<!DOCTYPE html><html></html>",
        b"OK",
        b"null",
        b"7",
        b'"data"',
        b"{}",
        b'{"data":null}',
        b'{"data":{"id":1}}',
        b'{"error":"no"}',
        b'{"items":[{"id":1}]}',
        b'{"meta":{"data":[{"id":1}]}}',
        b'{"page":NaN,"items":[]}',
        b'[{"id":1}]]',
        b'[{"id":1}][{"id":2}]',
        b'[{"id":1}] garbage',
        b'[{"id":1}}',
        b'{"data":[{"id":1}]]',
        b'{"data" 5 [{"id":1}]}',
        b'{"data":[{"id":1}],"data":[{"id":2}]}',
        b'{"data":[{"id":1}],"tickets":[{"id":2}]}',
        b'{"data":[{"id":1},NaN],"tickets":[{"id":2}]}',
        b'{"data":[{"id":1,"s":"unclosed}]}',
        '[{"id":1}]'.encode("utf-16"),
    ],
)
def test_what_is_no_list_answer_is_unreadable(body):
    with pytest.raises(UnreadableBody):
        parse_list(body, NAMES)


@pytest.mark.parametrize(
    ("body", "more", "total_pages", "total"),
    [
        (b'{"data":[],"more":false,"total_pages":2,"count":30}', False, 2, 30),
        (b'{"data":[NaN],"more":true,"total_pages":2,"count":30}', True, 2, 30),
        (b'{"data":[],"more":"yes","total_pages":"2","count":3.5}', None, None, None),
        (b'{"data":[],"more":1,"total_pages":true}', None, None, None),
        (b"[]", None, None, None),
    ],
)
def test_only_a_well_typed_envelope_is_believed(body, more, total_pages, total):
    page = parse_list(body, NAMES)
    assert (page.more, page.total_pages, page.total) == (more, total_pages, total)


def test_an_error_never_shows_a_part_of_a_secret():
    secret = "12-" + "abcdefghij" * 6
    redaction.remember(secret)
    for body in (f"<b>bad token: {'x' * 60}{secret}</b>", json.dumps({f"{'x' * 90} {secret}": 1})):
        with pytest.raises(UnreadableBody) as caught:
            parse_list(body.encode(), NAMES)
        assert "abcde" not in str(caught.value)


@pytest.mark.parametrize(
    ("members", "said"),
    [
        ('"error":"backend timeout, results incomplete"', '{"error":"backend timeout, results incomplete"}'),
        ('"err\\u006fr":"no"', '{"error":"no"}'),
        ('"error":{"message":"Semaphore limit reached","detail":null},"status":"failure"', "Semaphore"),
        (
            '"errors":[{"code":"timeout"}],"description":"Validation failed"',
            '{"errors":[{"code":"timeout"}]}',
        ),
        ('"status":"failure"', '{"status":"failure"}'),
        ('"error":' + "[" * 400 + "1" + "]" * 400, "failed: error"),
        ('"error":1,"error":1', '{"error":1}'),
    ],
)
@pytest.mark.parametrize("records", ["[]", '[{"id":1}]', '[{"id":1,"n":NaN}]'])
def test_an_answer_that_says_that_it_failed_is_unreadable_whatever_it_lists(members, said, records):
    for body in (f'{{"data":{records},{members}}}', f'{{{members},"data":{records}}}'):
        with pytest.raises(FailedAnswer, match=re.escape(said)):
            parse_list(body.encode(), NAMES)
        with pytest.raises(FailedAnswer, match=re.escape(said)):
            Reader(NAMES).parse_list(body.encode())


@pytest.mark.parametrize(
    "body",
    [
        b'{"data":[{"id":1}],"error":null,"errors":[],"status":"success"}',
        b'{"data":[{"id":1}],"error":"","errors":{},"status":1}',
        b'{"data":[{"id":1}],"meta":{"error":"no"}}',
        b'{"data":[{"id":1,"error":"disk","errors":["E17"],"status":"failure"}]}',
        b'[{"id":1,"error":"disk","status":"failure"}]',
    ],
)
def test_an_empty_error_and_a_records_own_one_are_none(body):
    assert [record["id"] for record in parse_list(body, NAMES).records] == [1]


# --- Single records -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "record"),
    [
        (b'{"data":{"id":1,"s":"}"}}', {"id": 1, "s": "}"}),
        (b'\xef\xbb\xbf {"meta":{"data":{"id":9}}, "ticket" : {"id":1} }\n', {"id": 1}),
        (b'{"id":1,"s":"x"}', {"id": 1, "s": "x"}),
        (b'{"data":{"id":18446744073709551616}}', {"id": 2**64}),
    ],
)
def test_a_single_record_is_found_in_its_envelope_or_bare(body, record):
    found, raw = parse_single(body, ("data", "ticket"))
    assert same(found, record)
    assert json.loads(raw) == record
    assert raw in body


def test_a_single_bad_record_is_rejected():
    record, raw = parse_single(b'{"data":{"id":1,"n":NaN}}', ("data",))
    assert isinstance(record, Rejected)
    assert (record.reason, record.raw) == ("not_a_number", raw)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b"null",
        b"<html>",
        b'{"error":"not found"}',
        b'{"data":null}',
        b'{"data":[{"id":1}]}',
        b'{"data":{"id":1}} {"data":{"id":2}}',
        b'{"data":{"id":1}, garbage}',
        b'{"data":{"id":1},"data":{"id":2}',
    ],
)
def test_what_holds_no_single_record_is_unreadable(body):
    with pytest.raises(UnreadableBody):
        parse_single(body, ("data", "ticket"))


@pytest.mark.parametrize(
    "body", [b'{"data":{"id":1},"error":"stale"}', b'{"error":"no"}', b'{"data":null,"errors":["no"]}']
)
def test_an_answer_for_one_record_that_failed_says_why(body):
    with pytest.raises(FailedAnswer, match=r"stale|no"):
        parse_single(body, ("data",))


def test_what_a_single_record_says_of_an_error_is_its_own():
    for body in (b'{"data":{"id":1,"error":"disk"}}', b'{"id":1,"error":"disk"}'):
        assert parse_single(body, ("data",))[0] == {"id": 1, "error": "disk"}


@pytest.mark.parametrize(
    ("raw", "values"),
    [
        (b'{"id":1}', [1]),
        (b'{"s":"}\\",{","o":{"id":2},"l":[{"id":3}], "\\u0069d" : "x" ,"n":NaN}', ["x"]),
        (b'{"id":1,"id":2,"id":1}', [1, 2]),
        (b'{"s":"\xff","id":7,"n":' + b"[" * 2_000 + b"]" * 2_000 + b"}", [7]),
        (b'{"id":null}', [None]),
        (b'{"id":NaN}', []),
        (b'{"id":5,"updated_at":"2020-01-01T00', [5]),
        (b'["id",1]', []),
        (b"{}", []),
        (b"null", []),
        (b"", []),
    ],
)
def test_what_stands_under_a_key_is_found_in_whatever_cannot_be_parsed(raw, values):
    assert values_under(raw, "id") == values


def test_every_cut_of_a_single_record_is_found():
    body = b'{"data":{"id":1,"s":"a}b","l":[{}]}}'
    for end in range(len(body)):
        with pytest.raises(UnreadableBody):
            parse_single(body[:end], ("data",))


# --- Excluded members ---------------------------------------------------------------------------


def without(value):
    """What `without_members` must leave of a parsed value."""
    if isinstance(value, list):
        return [without(inner) for inner in value]
    if isinstance(value, dict):
        return {
            key: without(inner) for key, inner in value.items() if not re.fullmatch(".*_password|pin", key)
        }
    return value


secretive = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["a", "pin", "x_password", "_password", "b", "pinned"]), inner)
    ),
    max_leaves=10,
)


@given(st.lists(secretive, max_size=4), st.data())
def test_excluded_members_are_cut_out_at_every_depth_and_nothing_else(records, data):
    body = b'{"data":' + spaced(records, data.draw).encode() + b"}"
    cut = without_members(body, ["*_password", "pin"])
    assert same(json.loads(cut), {"data": without(records)})
    assert same(json.loads(without_members(body, ["nothing"])), {"data": records})


@given(st.lists(secretive, min_size=1, max_size=4), st.data())
def test_a_cut_body_without_its_excluded_members_is_still_cut(records, data):
    body = b'{"data":' + spaced(records, data.draw).encode() + b"}"
    end = data.draw(st.integers(0, len(body) - 1))
    with pytest.raises(UnreadableBody):
        parse_list(without_members(body[:end], ["*_password", "pin"]), NAMES)


def test_an_escaped_key_is_excluded_too():
    body = b'[{"x_p\\u0061ssword":"hunter2","id":1}]'
    assert without_members(body, ["*_password"]) == b'[{"id":1}]'


# --- Time ---------------------------------------------------------------------------------------


def seconds(action):
    """Of the processor, whatever else runs on the machine."""
    best = float("inf")
    for _ in range(2):
        started = time.process_time()
        action()
        best = min(best, time.process_time() - started)
    return best


def test_an_ordinary_page_of_a_thousand_tickets_is_parsed_in_one_go():
    tickets = [
        {
            "id": number,
            "subject": "Printer: out of paper, again",
            "guid": str(UUID(int=number * 0x3E999_1234_5678_9012_3456_7890)),
            "sha": f"{number * 7**40:064d}",
            "description": "words " * 60,
            **{f"field_{index}": {"id": index, "_type": 370, "name": "n"} for index in range(15)},
        }
        for number in range(1000)
    ]
    body = orjson.dumps({"page": 1, "more": True, "data": tickets})
    page = parse_list(body, NAMES)
    # Pages that had to be split know the exact bytes of their records.
    assert page.exact is None
    assert page.records == tickets
    assert seconds(lambda: parse_list(body, NAMES)) < 12 * seconds(lambda: orjson.loads(body)) + 0.05


ATTACKS = {
    "long text": lambda n: b'[NaN,{"s":"' + b"x" * (20 * n) + b'"}]',
    "unclosed text of escaped quotes": lambda n: b'[{"s":"' + b'\\"' * n,
    "unclosed text of backslashes": lambda n: b'[{"s":"' + b"\\" * (2 * n + 1),
    "quotes": lambda n: b"[" + b'"' * n + b"]",
    "odd quotes": lambda n: b"[NaN," + b'"' * (2 * n + 1),
    "opening brackets": lambda n: b"[" * n,
    "nested brackets": lambda n: b"[" + b"[" * n + b"]" * n + b"]",
    "alternating brackets": lambda n: b"[NaN," + b"[{" * n,
    "closing brackets": lambda n: b"[NaN" + b"]}" * n,
    "blanks after texts": lambda n: b'[NaN,"a"' + b" " * n + b",1]",
    "blanks and texts": lambda n: b"[NaN" + b',"a"   ' * n + b"]",
    "keys": lambda n: b"[NaN,{" + b'"a" :' * n + b"}]",
    "digits": lambda n: b'[NaN,"' + b" 1.1" * n + b'"]',
    "one long number": lambda n: b"[NaN," + b"9" * n + b"]",
    "number without end": lambda n: b"[NaN, " + b"1." * n + b"]",
    "commas": lambda n: b"[" + b"," * n + b"]",
    "bad records": lambda n: b"[" + b"NaN," * (n // 10) + b"0]",
    "excluded keys": lambda n: b"[NaN,{" + b'"pin":1,' * n + b'"a":1}]',
    "unclosed excluded values": lambda n: b"[NaN" + b',{"pin":{"a":"' * n,
}


@pytest.mark.parametrize("name", sorted(ATTACKS))
def test_hostile_bodies_take_time_in_proportion_to_their_size(name):
    def read(body):
        for action in (
            lambda: parse_list(body, NAMES),
            lambda: parse_single(b'{"data":' + body + b"}", NAMES),
            lambda: without_members(body, ["pin"]),
        ):
            try:
                action()
            except UnreadableBody:
                continue

    small, large = ATTACKS[name](4_000), ATTACKS[name](64_000)
    # 16 times as large: 16 times as long, where a quadratic path takes 256 times.
    assert seconds(lambda: read(large)) < 60 * max(seconds(lambda: read(small)), 0.002)


def test_a_text_of_ten_megabytes_is_one_record():
    body = b'{"data":[{"id":1,"s":"' + b"\\\\" * 5_000_000 + b'"},{"id":2,"n":NaN}]}'
    first, second = parse_list(body, NAMES).records
    assert len(first["s"]) == 5_000_000
    assert second.reason == "not_a_number"


def test_the_envelope_is_kept_beside_the_records():
    for body in (
        b'{"data":[{"id":1}],"more":{"x":[1]},"end":7,"others":[2]}',
        b'{"data":[{"id":NaN}],"end":7}',
    ):
        envelope = parse_list(body, ("data",)).envelope
        assert envelope["end"] == 7
        assert "data" not in envelope
        assert "others" not in envelope


@pytest.mark.parametrize(
    ("raw", "result"),
    [
        (b"{}", b'{"a":{"b":1}}'),
        (b" {\n} ", b'{"a":{"b":1}} '),
        (b'{"id": 1.50, "x":"\\u00e4"}', b'{"a":{"b":1},"id": 1.50, "x":"\\u00e4"}'),
    ],
)
def test_members_are_put_before_a_records_own(raw, result):
    assert with_members(raw, {"a": {"b": 1}}) == result


@pytest.mark.parametrize(
    ("said", "more"),
    [({}, False), ({"more": True}, True), ({"total_pages": 3}, True), ({"total_pages": 2}, False)],
)
def test_what_an_envelope_says_of_further_pages(said, more):
    assert PageContent([], **said).says_more(2) == more
