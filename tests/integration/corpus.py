"""Malformed and odd records, declared: what a source may send, and what must become of it.

`reason` None: the record is loaded equal to what was sent. Else it is in quarantine with that
reason and JSON pointer. A record is `{"id": …, "subject": …, "updated_at": …, <members>}`, or
exactly `raw`, with its number for every `%d`.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Case:
    """One class of record."""

    name: str
    members: bytes = b""
    reason: str | None = None
    pointer: str = ""
    raw: bytes | None = None

    def sent(self, number: int) -> bytes:
        """The record's bytes."""
        if self.raw is not None:
            return self.raw.replace(b"%d", str(number).encode())
        head = b'{"id":%d,"subject":"s %d","updated_at":"2024-03-01T12:00:00Z"' % (number, number)
        return head + (b"," + self.members if self.members else b"") + b"}"


def deep(levels: int, opening: bytes = b"[", closing: bytes = b"]") -> bytes:
    """A value of so many levels."""
    return opening * levels + b"1" + closing * levels


def _time(value: bytes) -> bytes:
    return b'{"id":%d,"subject":"s","updated_at":' + value + b"}"


def _id(value: bytes) -> bytes:
    return b'{"id":' + value + b',"subject":"s %d","updated_at":"2024-03-01T12:00:00Z"}'


_RANGE, _TYPE = "number_out_of_range", "wrong_type"

CASES = (
    # --- Text
    Case("NUL escaped", b'"cf":"a\\u0000b"', "nul_character", "/cf"),
    Case("NUL in a nested list", b'"cf":[{"a/b~":["\\u0000"]}]', "nul_character", "/cf/0/a~1b~0/0"),
    Case("NUL in a key", b'"a\\u0000":1', "nul_character"),
    Case("NUL as a byte", b'"cf":"a\x00b"', "invalid_json"),
    Case("escaped backslash before u0000", b'"cf":"a\\\\u0000b"'),
    Case("high surrogate alone", b'"cf":"\\ud83d"', "lone_surrogate", "/cf"),
    Case("low surrogate alone", b'"cf":"\\ude00 x"', "lone_surrogate", "/cf"),
    Case("surrogates the wrong way round", b'"cf":"\\ude00\\ud83d"', "lone_surrogate", "/cf"),
    Case("surrogate in a key", b'"k\\ud800":1', "lone_surrogate"),
    Case("surrogate pair", b'"cf":"\\ud83d\\ude00","\\ud83d\\ude00":"in a key"'),
    Case("surrogate as UTF-8", b'"cf":"\xed\xa0\x80"', "invalid_utf8"),
    Case("overlong UTF-8", b'"cf":"\xc0\x80"', "invalid_utf8"),
    Case("Latin-1", b'"cf":"Stra\xdfe"', "invalid_utf8"),
    Case("cut UTF-8", b'"cf":"\xf0\x9f\x98"', "invalid_utf8"),
    Case("beyond Unicode", b'"cf":"\xf4\x90\x80\x80"', "invalid_utf8"),
    Case("byte order mark within", b'"cf":"\xef\xbb\xbfx"'),
    Case("byte order mark before a record", raw=b'\xef\xbb\xbf{"id":%d}', reason="invalid_json"),
    Case("raw line break", b'"cf":"a\nb"', "invalid_json"),
    Case("CRLF escaped", b'"description":"a\\r\\nb\\rc\\n\\\\.\\nd"'),
    Case("CRLF between members", b'\r\n\t"cf" :\r\n 1'),
    Case("bidi and zero width", '"description":"\u202eabc\u2066\u200b\u200d\ufeff"'.encode()),
    Case("control characters", b'"description":"\\u0001\\u001b[2J\\u007f\\u0085\\u2028"'),
    Case("terminal title", b'"cf":"\\u001b]0;x\\u0007"'),
    Case("script", b'"description":"<script>alert(1)</script>&amp;"'),
    Case("SQL", b'"description":"\'; drop table desk.tickets; -- $$ %s :x"'),
    Case("formula", b'"description":"=cmd|\'/c calc\'!A0"'),
    Case("formula behind quotes", b'"description":"\'\' +1"'),
    Case("full-width formula", '"description":"＝1+1"'.encode()),
    Case("tab and formula", b'"description":"\\t@x"'),
    Case("CSV quoting", b'"description":"\\"a\\",\\"b\\";\\n\\"","cf":"x,\\"y\\""'),
    Case("empty string", b'"description":"","cf":""'),
    Case("null", b'"description":null,"cf":null'),
    Case("blank", b'"description":" ","cf":"\\u00a0"'),
    Case("the word NULL", b'"description":"NULL","cf":"\\\\N"'),
    Case("a megabyte", b'"description":"' + b"x" * 1_000_000 + b'"'),
    Case("ten megabytes", b'"cf":"' + "ä".encode() * 5_000_000 + b'"'),
    Case("a million digits in a text", b'"cf":"' + b"9" * 1_000_000 + b'"'),
    # --- Numbers
    Case("2**53+1", b'"cf":9007199254740993'),
    Case("2**63", b'"cf":9223372036854775808'),
    Case("2**64", b'"cf":18446744073709551616'),
    Case("2**70", b'"cf":[1180591620717411303424]'),
    Case("below -2**63", b'"cf":-9223372036854775809'),
    Case("a thousand digits", b'"cf":' + b"7" * 1_000),
    Case("five thousand digits", b'"cf":' + b"7" * 5_000, _RANGE, "/cf"),
    Case("1e400", b'"cf":{"x":1e400}', _RANGE, "/cf/x"),
    Case("-1e400", b'"cf":-1e400', _RANGE, "/cf"),
    Case("1e999999999", b'"cf":1e999999999', _RANGE, "/cf"),
    Case("1e-400", b'"cf":1e-400'),
    Case("1e-99999", b'"cf":1e-99999', _RANGE, "/cf"),
    Case("negative zero", b'"cf":-0.0'),
    Case("1E5", b'"cf":1E5'),
    Case("one point nought", b'"cf":1.0'),
    Case("decimal of 19 digits", b'"cf":0.1234567890123456789'),
    Case("decimal beside 2**70", b'"cf":[0.1234567890123456789,1180591620717411303424]'),
    Case("decimal of 60 digits", b'"cf":3.' + b"14159265358979323846264338327950288419716939937510" * 1),
    Case("whole decimal beyond a double", b'"cf":9007199254740993.0'),
    Case("17 digits", b'"cf":0.30000000000000004'),
    Case("money", b'"cf":[19.99,0.1,1234567890.12]'),
    Case("NaN", b'"cf":NaN', "not_a_number"),
    Case("Infinity", b'"cf":[-Infinity]', "not_a_number"),
    Case("leading zero", b'"cf":007', "invalid_json"),
    Case("plus sign", b'"cf":+1', "invalid_json"),
    Case("hexadecimal", b'"cf":0x1F', "invalid_json"),
    # --- Ids
    Case("id null", raw=_id(b"null"), reason="id_missing", pointer="/id"),
    Case(
        "no id",
        raw=b'{"subject":"s %d","updated_at":"2024-03-01T12:00:00Z"}',
        reason="id_missing",
        pointer="/id",
    ),
    Case("id 0", raw=_id(b"0"), reason="id_out_of_range", pointer="/id"),
    Case("id negative", raw=_id(b"-%d"), reason="id_out_of_range", pointer="/id"),
    Case("id 2**63", raw=_id(b"9223372036854775808"), reason="id_out_of_range", pointer="/id"),
    Case("id 2**70", raw=_id(b"1180591620717411303424"), reason="id_out_of_range", pointer="/id"),
    Case("id 1.0", raw=_id(b"%d.0"), reason="id_wrong_type", pointer="/id"),
    Case("id 1E5", raw=_id(b"1E5"), reason="id_wrong_type", pointer="/id"),
    Case("id with many places", raw=_id(b"1.00000000000000000001"), reason="id_wrong_type", pointer="/id"),
    Case("id as digits", raw=_id(b'"%d"'), reason="id_wrong_type", pointer="/id"),
    Case("id with blanks", raw=_id(b'" %d"'), reason="id_wrong_type", pointer="/id"),
    Case("id very long", raw=_id(b'"' + b"x" * 10_000 + b'%d"'), reason="id_wrong_type", pointer="/id"),
    Case("id boolean", raw=_id(b"true"), reason="id_wrong_type", pointer="/id"),
    Case("id list", raw=_id(b"[%d]"), reason="id_wrong_type", pointer="/id"),
    Case("id object", raw=_id(b'{"id":%d}'), reason="id_wrong_type", pointer="/id"),
    # --- Keys
    Case("repeated key", b'"cf":1,"cf":2', "repeated_key"),
    Case("repeated key, same value", b'"cf":1,"cf":1'),
    Case("repeated key, equal in Python", b'"cf":1,"cf":true', "repeated_key"),
    Case("repeated key, escaped", b'"cf":1,"c\\u0066":2', "repeated_key"),
    Case("repeated key made up for", b'"cf":1,"cf":2,"x":"\\u003a"', "repeated_key"),
    Case("repeated id", b'"id":5', "repeated_key"),
    Case("keys by case", b'"CF":1,"cf":2,"Subject":"x","ID":7'),
    Case("keys by normalisation", '"\u00e9":1,"e\u0301":2,"ﬁ":3,"fi":4'.encode()),
    Case("keys by blanks", b'"cf":1," cf":2,"cf ":3,"":4," ":5'),
    Case("keys with signs", b'"a.b":1,"a/b":2,"a~b":3,"a\\"b":4,"$ref":5,"a\\\\b":6,"\\n":7'),
    Case("keys of columns", b'"tenant":"x","connection":"y","batch_id":1,"content_hash":"z","people":[]'),
    Case("a long key", b'"' + b"k" * 100_000 + b'":1'),
    Case("2,000 fields", b",".join(b'"cf_%04d":%d' % (n, n) for n in range(2_000))),
    # --- Shape
    Case("deep 490", b'"cf":' + deep(490)),
    Case("deep 1,000", b'"cf":' + deep(1_000), "too_deep"),
    Case("deep 10,000 objects", b'"cf":' + deep(10_000, b'{"a":', b"}"), "too_deep"),
    Case("deep 200,000", b'"cf":' + deep(200_000), "too_deep"),
    Case("record null", raw=b"null", reason="not_an_object"),
    Case("record boolean", raw=b"true", reason="not_an_object"),
    Case("record number", raw=b"-4.5e3", reason="not_an_object"),
    Case("record text", raw=b'"%d"', reason="not_an_object"),
    Case("record list", raw=b'[{"id":%d}]', reason="not_an_object"),
    Case("record empty list", raw=b"[]", reason="not_an_object"),
    Case("record empty object", raw=b"{}", reason="id_missing", pointer="/id"),
    Case("nothing between commas", raw=b"", reason="invalid_json"),
    Case("trailing comma", b'"cf":1,', "invalid_json"),
    Case("comment", b'"cf":1 /* one */', "invalid_json"),
    Case("single quotes", b"'cf':1", "invalid_json"),
    Case("unquoted key", b"cf:1", "invalid_json"),
    Case("Python words", b'"cf":None', "invalid_json"),
    Case("wrong bracket inside", raw=b'{"id":%d,"cf":{"a":1],"b":2}', reason="invalid_json"),
    # --- Types of columns
    Case(
        "subject number",
        raw=b'{"id":%d,"subject":5,"updated_at":"2024-03-01T12:00:00Z"}',
        reason=_TYPE,
        pointer="/subject",
    ),
    Case(
        "subject list",
        raw=b'{"id":%d,"subject":[],"updated_at":"2024-03-01T12:00:00Z"}',
        reason=_TYPE,
        pointer="/subject",
    ),
    Case("description boolean", b'"description":false', _TYPE, "/description"),
    Case("description long decimal", b'"description":0.1234567890123456789', _TYPE, "/description"),
    Case("status number", b'"status":3', _TYPE, "/status"),
    Case("status name object", b'"status":{"id":1,"name":{}}', _TYPE, "/status/name"),
    Case("status closed text", b'"status":{"id":1,"name":"New","closed":"no"}', _TYPE, "/status/closed"),
    Case("status plain text", b'"status":"New"'),
    Case("tags text", b'"tags":"a,b"', _TYPE, "/tags"),
    Case("tags object", b'"tags":{"0":"a"}', _TYPE, "/tags"),
    Case(
        "tags of all sorts", b'"tags":[1,null,true,{"a":[]},"x",0.1234567890123456789,18446744073709551616]'
    ),
    Case("tags null", b'"tags":null'),
    Case("account stub without id", b'"account":{"_type":"Account"}'),
    Case("account id text", b'"account":{"id":"7"}', "id_wrong_type", "/account/id"),
    Case("account id too large", b'"account":{"id":9223372036854775808}', "id_out_of_range", "/account/id"),
    Case("account list", b'"account":[{"id":1}]', "id_wrong_type", "/account"),
    Case("account of itself", b'"account":{"id":1,"account":{"id":1,"parent":{"id":1}}}'),
    Case("requester id decimal", b'"customer_user":{"id":1.5}', "id_wrong_type", "/customer_user/id"),
    Case("watchers twice", b'"user_watchers":[{"id":3},{"id":3},{"id":3,"_type":"User"}]'),
    Case("watcher wrong", b'"user_watchers":[{"id":3},{"id":[]}]', "id_wrong_type", "/user_watchers/1/id"),
    Case("watchers no list", b'"user_watchers":"nobody"'),
    # --- Times
    Case("year 0000", raw=_time(b'"0000-01-01T00:00:00Z"'), reason="time_invalid", pointer="/updated_at"),
    Case("year 10000", raw=_time(b'"10000-01-01T00:00:00Z"'), reason="time_invalid", pointer="/updated_at"),
    Case("30 February", raw=_time(b'"2024-02-30T00:00:00Z"'), reason="time_invalid", pointer="/updated_at"),
    Case("leap second", raw=_time(b'"2016-12-31T23:59:60Z"'), reason="time_invalid", pointer="/updated_at"),
    Case(
        "offset of 25 hours",
        raw=_time(b'"2024-03-01T00:00:00+25:00"'),
        reason="time_invalid",
        pointer="/updated_at",
    ),
    Case(
        "before all time by its offset",
        raw=_time(b'"0001-01-01T00:00:00+14:00"'),
        reason="time_invalid",
        pointer="/updated_at",
    ),
    Case(
        "after all time by its offset",
        raw=_time(b'"9999-12-31T23:59:59-14:00"'),
        reason="time_invalid",
        pointer="/updated_at",
    ),
    Case("no zone", raw=_time(b'"2024-03-01T12:00:00"'), reason="time_without_zone", pointer="/updated_at"),
    Case("no time", raw=_time(b'"2024-03-01"'), reason="time_without_zone", pointer="/updated_at"),
    Case("epoch", raw=_time(b"1709294400"), reason=_TYPE, pointer="/updated_at"),
    Case("epoch as text", raw=_time(b'"1709294400"'), reason="time_invalid", pointer="/updated_at"),
    Case("American", raw=_time(b'"03/01/2024 12:00 PM"'), reason="time_invalid", pointer="/updated_at"),
    Case("German", raw=_time(b'"1.3.2024 12:00"'), reason="time_invalid", pointer="/updated_at"),
    Case("empty time", raw=_time(b'""'), reason="time_invalid", pointer="/updated_at"),
    Case(
        "full-width digits",
        raw=_time('"２０２４-03-01T12:00:00Z"'.encode()),
        reason="time_invalid",
        pointer="/updated_at",
    ),
    Case("change time null", raw=_time(b"null"), reason="change_time_missing", pointer="/updated_at"),
    Case(
        "change time in 2124",
        raw=_time(b'"2124-03-01T12:00:00Z"'),
        reason="change_time_in_future",
        pointer="/updated_at",
    ),
    Case(
        "created far away", b'"created_at":"0001-01-01T00:00:00Z","resolved_at":"9999-12-31T23:59:59.999999Z"'
    ),
    Case("created impossible", b'"created_at":"2024-13-01T00:00:00Z"', "time_invalid", "/created_at"),
    Case("resolved object", b'"resolved_at":{}', _TYPE, "/resolved_at"),
    Case("another offset", raw=_time(b'"2024-03-01T17:15:00+05:45"')),
    Case("nanoseconds", raw=_time(b'"2024-03-01T12:00:00.123456789Z"')),
    Case("nanoseconds of another time", b'"created_at":"2024-02-01T12:00:00.000000001+00:00"'),
    Case("minutes only", raw=_time(b'"2024-03-01T12:00Z"')),
)
