"""No address, phone number or text of a person is shown, wherever it stands; ids and times are."""

import json

import pytest

from bridge_pipeline.masking import (
    masked,
    masked_detail,
    masked_key,
    masked_record,
    masked_statement,
    masked_text,
    masked_whole,
)
from bridge_pipeline.model import ENTITIES
from bridge_pipeline.redaction import redact

USERS, TICKETS = ENTITIES["users"], ENTITIES["tickets"]


@pytest.mark.parametrize(
    "personal",
    [
        "ada.lovelace@example.com",
        "Ada+desk@mail.example.co.uk",
        "ünsal@exämple.de",
        '"Ada L"@example.com',
        "ada%40example.com",
        "+49 170 1234567",
        "+1 (415) 555-0123",
        "0170 1234567",
        "415-555-0123",
        "01701234567",
    ],
)
@pytest.mark.parametrize("around", ["{}", "ask {} first", "<{}>", "status/{};x", "({})"])
def test_addresses_and_numbers_are_masked_in_any_text(personal, around):
    shown = masked_text(around.format(personal))
    assert personal not in shown
    assert not any(part in shown for part in ("example", "exämple", "1234567", "555-0123"))
    assert masked_text(shown) == shown


@pytest.mark.parametrize(
    "text",
    [
        "2024-02-30T25:00:00Z",
        "from 2024-03-01 to 2024-03-02",
        "2024-03-01 10:00:00+02:00",
        "expected text, got int",
        "12 of 1,234,567,890",
        "9223372036854775808",
        "tickets/4711",
    ],
)
def test_what_is_nobodys_stays_as_it_is(text):
    assert masked_text(text) == text


@pytest.mark.parametrize(
    ("entity", "column", "value", "shown"),
    [
        (USERS, "name", "Ada Lovelace", "A… (12 characters)"),
        (TICKETS, "description", "x" * 500, "x… (500 characters)"),
        (TICKETS, "tags", '["ada@example.com"]', "[… (19 characters)"),
        (TICKETS, "custom_fields", "{}", "{… (2 characters)"),
        (TICKETS, "status", "ask ada@example.com", "ask a…@…"),
        (TICKETS, "status", None, "null"),
        (TICKETS, "account_id", "4155550123", "4155550123"),
        (TICKETS, "account_id", "Ada Lovelace", "A… (12 characters)"),
        (TICKETS, "id", "4711", "4711"),
    ],
)
def test_values_are_masked_by_column_and_by_what_they_hold(entity, column, value, shown):
    assert masked(entity, column, value) == shown
    assert masked(entity, column, shown) == shown, "masking what is masked changes nothing"


def test_a_tenant_that_asked_sees_its_values():
    assert masked(USERS, "email", "ada@example.com", clear=True) == "ada@example.com"
    assert masked_detail("time_invalid", "call Ada", clear=True) == "call Ada"
    assert masked_record(b'{"name":"Ada"}', clear=True) == '{"name":"Ada"}'


@pytest.mark.parametrize(
    ("reason", "detail", "shown"),
    [
        ("time_invalid", "2024-02-30T10:00:00Z", "2024-02-30T10:00:00Z"),
        ("time_invalid", "call Ada tomorrow", "c… (17 characters)"),
        ("time_without_zone", "0170 1234567", "0… (12 characters)"),
        ("id_out_of_range", "9223372036854775808", "9223372036854775808"),
        ("id_out_of_range", "1701234567", "1… (10 characters)"),
        ("wrong_type", "expected text, got list", "expected text, got list"),
        (
            "wrong_type",
            "expected true or false, got 'Ada said'",
            "expected true or false, got 'A… (8 characters)'",
        ),
        ("repeated_key", "with different values: ada@example.com", "with different values: a…@…"),
    ],
)
def test_a_detail_that_quotes_a_value_shows_only_times_and_numbers(reason, detail, shown):
    assert masked_detail(reason, detail) == shown


def test_an_id_that_is_no_id_is_masked():
    assert masked_key("4711") == "4711"
    assert masked_key("ada@example.com") == "a… (15 characters)"


def test_a_rejected_record_shows_its_fields_and_no_texts():
    record = {
        "id": 5,
        "name": "Ada",
        "phone": 491701234567,
        "updated_at": "2024-03-01T10:00:00Z",
        "account": {"id": 1, "contact": "ada@example.com"},
        "ada@example.com": [1.5, True, None],
    }
    shown = json.loads(masked_record(json.dumps(record).encode()))
    assert (shown["id"], shown["updated_at"], shown["account"]["id"]) == (5, "2024-03-01T10:00:00Z", 1)
    assert "a…@…" in shown
    assert not any(text in json.dumps(shown) for text in ("Ada", "example", "491701234567"))


@pytest.mark.parametrize(
    ("name", "value", "shown"),
    [
        ("account_id", "360001234567", "360001234567"),
        ("sys_id", "62826bf03710200044e0bfc8bcbe5df1", "62826bf03710200044e0bfc8bcbe5df1"),
        ("user_id", "123e4567-e89b-12d3-a456-426614174000", "123e4567-e89b-12d3-a456-426614174000"),
        ("phone_id", "0301234567", "0… (10 characters)"),
        ("owner_id", "Jane-Doe", "J… (8 characters)"),
        ("owner_id", "Ada", "A… (3 characters)"),
        ("id", "Jane-Doe", "J… (8 characters)"),
    ],
)
def test_a_field_that_is_called_an_id_shows_only_what_is_one_beyond_doubt(name, value, shown):
    assert json.loads(masked_record(json.dumps({name: value}).encode())) == {name: shown}


def test_what_a_reviewer_said_is_kept_whole_without_addresses_and_numbers():
    said = f"Ann Lee, ada@example.com, 0170 1234567 {'because ' * 40}"
    assert masked_statement(said) == f"Ann Lee, a…@…, … (number) {'because ' * 40}"


@pytest.mark.parametrize("raw", [b"{", b"\xff", b"[" * 100_000, b'{"a":' * 5_000 + b"1" + b"}" * 5_000])
def test_a_record_that_cannot_be_read_shows_its_size_or_nothing(raw):
    assert len(masked_record(raw)) < 2_000


@pytest.mark.parametrize(
    "text", ["\u202egnp.exe", "a\u2067b\u2069c", "half \ud83d", "a\x00b\x1b[31m", "\u05e9\u05dc\u05d5\u05dd"]
)
@pytest.mark.parametrize("show", [masked_text, masked_whole, masked_key])
def test_no_character_reorders_or_hides_what_stands_around_it(text, show):
    shown = show(text)
    assert shown.encode()
    assert not set(shown) & set("\u202e\u2067\x00\x1b")
    assert shown.count("\u2068") == shown.count("\u2069")


@pytest.mark.parametrize(
    ("line", "clean"),
    [
        ("Key (email)=(ada@example.com) already exists", "Key (email)=(a…@…) already exists"),
        ("user 'ada@example.com' called +49 170 1234567", "user 'a…@…' called +…"),
        ("postgresql://bridge@db.example.com/data", "postgresql://bridge@db.example.com/data"),
        (
            "2024-03-01T10:00:00+00:00 batch 1234567890 of 17",
            "2024-03-01T10:00:00+00:00 batch 1234567890 of 17",
        ),
    ],
)
def test_log_lines_and_errors_name_no_address(line, clean):
    assert redact(line) == clean
