"""Canonical values are read as they stand, or refused; never guessed."""

from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bridge_pipeline.connector_kit import fields
from bridge_pipeline.connector_kit.fields import Refused, from_microseconds, integer_id, microseconds
from bridge_pipeline.connectors.helpdesk.streams import stub_id, stub_name

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def at(*parts):
    return (datetime(*parts, tzinfo=UTC) - EPOCH) // timedelta(microseconds=1)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2021-08-05T14:54:07Z", at(2021, 8, 5, 14, 54, 7)),
        ("2021-01-01T00:00:00.000000Z", at(2021, 1, 1)),
        ("2024-12-05T11:00:39+02:00", at(2024, 12, 5, 9, 0, 39)),
        ("2024-12-05T23:30:00-0130", at(2024, 12, 6, 1)),
        ("2024-12-05 11:00:39+00:00", at(2024, 12, 5, 11, 0, 39)),
        ("2024-12-05T11:00:39.5-00:00", at(2024, 12, 5, 11, 0, 39, 500_000)),
        ("2024-12-05T11:00:39.123456789Z", at(2024, 12, 5, 11, 0, 39, 123_456)),
        ("2024-12-05T11:00:39.9999999Z", at(2024, 12, 5, 11, 0, 39, 999_999)),
        ("2024-02-29T23:59:59.999999+14:00", at(2024, 2, 29, 9, 59, 59, 999_999)),
        ("1969-12-31T23:59:59.999999Z", -1),
        ("0001-01-01T00:00:00Z", at(1, 1, 1)),
        ("0001-01-01T00:00:00-01:00", at(1, 1, 1, 1)),
        ("9999-12-31T23:59:59.999999Z", at(9999, 12, 31, 23, 59, 59, 999_999)),
        ("9999-12-31T23:59:59+01:00", at(9999, 12, 31, 22, 59, 59)),
    ],
)
def test_times_with_a_zone_are_read_as_utc(text, expected):
    assert microseconds(text, "/t") == expected
    assert from_microseconds(expected) == EPOCH + timedelta(microseconds=expected)


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ("2021-08-05T14:54:07", "time_without_zone"),
        ("2021-08-05", "time_without_zone"),
        ("", "time_invalid"),
        ("today", "time_invalid"),
        ("2021-02-29T00:00:00Z", "time_invalid"),
        ("2021-13-01T00:00:00Z", "time_invalid"),
        ("2016-12-31T23:59:60Z", "time_invalid"),
        ("2021-08-05T25:00:00Z", "time_invalid"),
        ("2021-08-05T24:00:00Z", "time_invalid"),
        ("2021-08-05T14:54:07Z\n", "time_invalid"),
        ("2021-08-05T14:54:07+25:00", "time_invalid"),
        ("05/08/2021 14:54", "time_invalid"),
        ("0000-00-00T00:00:00Z", "time_invalid"),
        ("10000-01-01T00:00:00Z", "time_invalid"),
        # In UTC these fall out of the years that Python and the CSV can express.
        ("0001-01-01T00:00:00+01:00", "time_invalid"),
        ("9999-12-31T23:30:00-01:00", "time_invalid"),
        (1_628_175_247, "wrong_type"),
        (1.5, "wrong_type"),
        (True, "wrong_type"),
        ({"date": "2021-08-05"}, "wrong_type"),
        ([], "wrong_type"),
    ],
)
def test_what_is_no_certain_time_is_refused_with_its_place(value, reason):
    with pytest.raises(Refused) as caught:
        microseconds(value, "/updated_at")
    assert (caught.value.reason, caught.value.pointer) == (reason, "/updated_at")
    assert len(caught.value.detail) <= 60


def test_no_time_is_null():
    assert microseconds(None, "/t") is None
    assert fields.instant("created_at").read({}) is None


@given(
    st.datetimes(datetime(2, 1, 1), datetime(9998, 12, 31)),
    st.timedeltas(timedelta(hours=-23), timedelta(hours=23)),
)
def test_every_time_survives_in_every_zone(moment, offset):
    zone = timezone(timedelta(minutes=offset // timedelta(minutes=1)))
    value = microseconds(moment.replace(tzinfo=zone).isoformat(), "/t")
    assert value is not None
    assert from_microseconds(value) == moment.replace(tzinfo=zone)


@pytest.mark.parametrize("value", [1, 2**31, 2**53 + 1, 2**63 - 1])
def test_ids_of_64_bits_are_kept_to_the_digit(value):
    assert fields.identity().read({"id": value}) == str(value)
    assert integer_id(value, "/account/id") == str(value)


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (0, "id_out_of_range"),
        (-1, "id_out_of_range"),
        (2**63, "id_out_of_range"),
        (10**4000, "id_out_of_range"),
        (True, "id_wrong_type"),
        (1.0, "id_wrong_type"),
        ("1", "id_wrong_type"),
        ("", "id_wrong_type"),
        ([1], "id_wrong_type"),
        ({"id": 1}, "id_wrong_type"),
    ],
)
def test_other_ids_are_refused(value, reason):
    for read in (lambda: fields.identity().read({"id": value}), lambda: integer_id(value, "/id")):
        with pytest.raises(Refused) as caught:
            read()
        assert (caught.value.reason, caught.value.pointer) == (reason, "/id")
        assert len(caught.value.detail) <= 60


def test_a_record_needs_an_id_and_a_reference_does_not():
    for record in ({}, {"id": None}):
        with pytest.raises(Refused, match="id_missing"):
            fields.identity().read(record)
    assert integer_id(None, "/account/id") is None


@pytest.mark.parametrize(
    ("field", "good", "bad"),
    [
        (fields.text("x"), ["", " a ", "\u202e😀", "null"], [0, False, [], {}, 1.5]),
        (fields.boolean("x"), [True, False], [0, 1, "true", "", [], {}]),
        (fields.instant("x"), [], [0, False, [], {}]),
    ],
)
def test_values_of_the_declared_type_pass_and_no_other(field, good, bad):
    assert field.read({"x": None}) is None
    assert field.read({}) is None
    for value in good:
        assert field.read({"x": value}) is value
    for value in bad:
        with pytest.raises(Refused, match="wrong_type") as caught:
            field.read({"x": value})
        assert caught.value.pointer == "/x"


def test_a_field_may_have_another_name_at_the_source():
    field = fields.text("subject", "short_description")
    assert (field.column, field.consumes) == ("subject", ("short_description",))
    assert field.read({"short_description": "x", "subject": 5}) == "x"


# --- Whole columns --------------------------------------------------------------------------------

OBJECTS = {
    "stub_name": stub_name("x"),
    "stub_id": stub_id("x", "x", "y"),
    "text": fields.text("x"),
    "boolean": fields.boolean("x"),
    "array": fields.array("x"),
    "identity": fields.identity(key="x"),
    "reference": fields.reference("x"),
    "instant": fields.instant("x"),
}
digits = st.integers(0, 99).map("{:02}".format)
times = st.one_of(
    st.datetimes(datetime(1, 1, 1)).map(lambda moment: moment.isoformat() + "Z"),
    st.builds(
        "{:04}-{}-{}{}{}:{}:{}{}{}".format,
        st.sampled_from([0, 1, 2, 1969, 1970, 2024, 9998, 9999]),
        st.sampled_from(["01", "02", "12", "13", "00"]),
        st.sampled_from(["01", "28", "29", "30", "31", "32"]),
        st.sampled_from(["T", "T", "T", " ", "t"]),
        st.one_of(st.sampled_from(["00", "23", "24"]), digits),
        digits,
        st.one_of(st.sampled_from(["59", "60", "61"]), digits),
        st.sampled_from(["", "", ".5", ".123456", ".1234567", ",5", "."]),
        st.sampled_from(
            [
                "Z",
                "Z",
                "Z",
                "+00:00",
                "-00:00",
                "+14:00",
                "-23:59",
                "+24:00",
                "+01:60",
                "+0100",
                "+01",
                "z",
                "",
                "Z\n",
            ]
        ),
    ),
)
scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-1, 3),
    st.sampled_from([2**63 - 1, 2**63, 2**64, 10**30]),
    st.floats(),
    st.text(max_size=3),
    times,
    st.lists(st.integers(), max_size=1),
)
held = st.one_of(
    scalars,
    st.dictionaries(st.sampled_from(["id", "name"]), st.one_of(st.none(), st.integers(0, 2), st.just("n"))),
)
plain = st.sampled_from(
    [
        ["a", None, "b"],
        [1, 2**63 - 1],
        [None, 3],
        [True, None],
        [["a"], []],
        [{"id": 1}, {"id": None, "name": "n"}],
    ]
)
columns = st.one_of(st.lists(held, max_size=4), st.lists(times | st.none(), max_size=4), plain)


def one_by_one(field, records):
    """The values, or why the first record that is refused is."""
    try:
        return [field.read(record) for record in records]
    except Refused as refused:
        return refused.reason, refused.pointer, refused.detail


@pytest.mark.parametrize("name", OBJECTS)
@settings(max_examples=200)
@given(values=columns, missing=st.booleans())
def test_a_column_is_read_as_its_values_are_one_by_one(name, values, missing):
    field = OBJECTS[name]
    records = [{"x": value} for value in values] + ([{}] if missing else [])
    expected = one_by_one(field, records)
    found = field.read_all(records)
    assert found is None or repr(found) == repr(expected)
    if isinstance(expected, list):
        assert repr(field.values(records)[0]) == repr(expected)
    else:
        with pytest.raises(Refused) as caught:
            field.values(records)
        assert (caught.value.reason, caught.value.pointer, caught.value.detail) == expected


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("instant", ["2024-01-01T00:00:00Z", None, "2024-01-01T00:00:00.5+02:00"]),
        ("instant", [None, None]),
        ("text", ["a", None]),
        ("identity", [1, 2]),
        ("stub_name", [{"name": "New"}, {"id": 1}]),
        ("stub_id", [{"id": 1}, {"name": "x"}]),
    ],
)
def test_what_is_plain_is_read_at_once(name, values):
    records = [{"x": value} for value in values]
    assert OBJECTS[name].read_all(records) == one_by_one(OBJECTS[name], records)
