"""How values of people are shown where they may be seen by others: not at all, but recognisably.

Columns that hold personal values are masked whole. Any other value may still quote a person (a tag,
a status, an error's detail), so addresses and phone numbers are masked in all of them. Masking what
is masked changes nothing. A tenant may ask for its values as they are: `clear`.
"""

import json
import re
import unicodedata
from typing import Any

from bridge_pipeline.model import Entity
from bridge_pipeline.redaction import redact_people

_SHOWN = 120
_MASKED = re.compile(r".?… \([0-9]+ characters\)", re.DOTALL)
_WAS_CUT = re.compile(rf".{{{_SHOWN}}}… \([0-9]+ characters\)", re.DOTALL)
# What the parser's own words and the source's own marks look like; all else may be a person's text.
_TIME = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}(?:[T ][0-9:.,]{0,18}(?:Z|[+-][0-9:]{2,6})?)?")
_KEY = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
# An id beyond doubt: a number as sources count, or a long hexadecimal one, or a UUID. A phone number
# begins with 0 or +.
_ID = re.compile(
    r"0|[1-9][0-9]{0,19}|[0-9a-fA-F]{16,64}|[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}"
)
# A value as Python quotes it, up to the last such quote.
_QUOTED = re.compile(r"""(['"])(.+)\1""", re.DOTALL)
# Digits as people write phone numbers, with or without separators: 9 to 15 of them.
_NUMBER = re.compile(r"(?<![\w.,:+-])\(?[0-9](?:[ ().\-/\u00a0]{0,2}[0-9]){8,14}(?![\w:,]|[.-][0-9])")
# Characters that a reader does not see and that turn the text around them, or end the line.
_STEERING = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\ufeff]")
_ISOLATING = re.compile("[\u061c\u200e\u200f\u2066-\u2069]")
_DEEPEST = 20
_NULL = "null"
_ANY_TEXT = frozenset({"custom_fields", "people", "raw", "tags"})


def masked(entity: Entity, column: str, value: Any, clear: bool = False) -> str:
    """A value for a report, log or sample: personal ones keep their first letter and length."""
    if value is None or value != value or value == _NULL:
        return _NULL
    if clear:
        return masked_text(value, clear)
    if column == "id" or column in {parent.name for parent in entity.parents}:
        return masked_key(value)
    return masked_whole(value) if column in _personal(entity) else masked_text(value)


def masked_text(value: Any, clear: bool = False) -> str:
    """A text that is nobody's own, with the addresses and phone numbers in it masked, and cut."""
    text = _harmless(value)
    return _isolated(_cut(text if clear else _without_people(text)))


def masked_statement(value: str) -> str:
    """What a reviewer said, with the addresses and phone numbers in it masked; not cut, as it is evidence."""
    return _isolated(_without_people(_harmless(value)))


def masked_whole(value: Any) -> str:
    """A text of a person: its first letter and its length."""
    text = _harmless(value)
    return _isolated(text if _MASKED.fullmatch(text) else f"{text[:1]}… ({len(text)} characters)")


def masked_key(value: Any, clear: bool = False) -> str:
    """The id of a record as the source gave it; one that does not look like an id is masked."""
    text = _harmless(value)
    return _isolated(_cut(text)) if clear or _KEY.fullmatch(text) else masked_whole(text)


def masked_detail(reason: str, detail: str, clear: bool = False) -> str:
    """What a reason says about a quarantined record; where it quotes a value, only times and numbers."""
    text = _harmless(detail)
    if clear or reason not in _QUOTING:
        quotes = text if clear else _QUOTED.sub(lambda found: masked_whole(found[2]).join(found[1] * 2), text)
        return masked_text(quotes, clear)
    return text if _TIME.fullmatch(text) or _long_integer(text) else masked_whole(text)


# Reasons whose detail is the value that was refused.
_QUOTING = frozenset({"time_invalid", "time_without_zone", "change_time_in_future", "id_out_of_range"})


def masked_record(raw: bytes, clear: bool = False) -> str:
    """A record as its source sent it: its fields, with all texts masked; unreadable ones as their size."""
    if clear:
        return _harmless(raw.decode("utf-8", "backslashreplace"))
    try:
        value = json.loads(raw)
        return json.dumps(_hidden("", value, 0), ensure_ascii=False)
    except (ValueError, RecursionError):
        return f"{len(raw):,} bytes that cannot be read as a record"


def _hidden(key: str, value: Any, depth: int) -> Any:
    if depth > _DEEPEST:
        return "…"
    if isinstance(value, dict):
        return {masked_text(name): _hidden(name, part, depth + 1) for name, part in value.items()}
    if isinstance(value, list):
        return [_hidden(key, part, depth + 1) for part in value]
    if isinstance(value, str):
        return _shown(key, value)
    if isinstance(value, int | float) and not isinstance(value, bool) and not _is_key(key):
        digits = str(value)
        return value if len(digits) < 9 or _long_integer(digits) else f"… ({len(digits)} digits)"
    return value


def _shown(key: str, text: str) -> str:
    text = _harmless(text)
    if _TIME.fullmatch(text) or (_is_key(key) and _ID.fullmatch(text)):
        return text
    return masked_whole(text) if text else text


def _is_key(name: str) -> bool:
    return name == "id" or name.endswith("_id")


def _long_integer(text: str) -> bool:
    """Whether it is a number with more digits than any phone number has, or with fewer."""
    digits = text.removeprefix("-")
    return digits.isascii() and digits.isdigit() and not 7 <= len(digits) <= 15


def _without_people(text: str) -> str:
    return _NUMBER.sub(_unless_a_time, redact_people(text))


def _unless_a_time(found: re.Match[str]) -> str:
    return found[0] if _TIME.match(found[0]) else "… (number)"


def _harmless(value: Any) -> str:
    """As text that any encoding takes and that does not reorder or hide what stands around it."""
    text = value if isinstance(value, str) else str(value)
    text = text.encode("utf-8", "backslashreplace").decode()
    return _STEERING.sub(lambda found: found[0].encode("unicode_escape").decode(), _ISOLATING.sub("", text))


def _isolated(text: str) -> str:
    """Text in letters that run from right to left keeps them to itself."""
    right_to_left = any(unicodedata.bidirectional(letter) in ("R", "AL") for letter in text)
    return f"\u2068{text}\u2069" if right_to_left else text


def _cut(text: str) -> str:
    if len(text) <= _SHOWN or _WAS_CUT.fullmatch(text):
        return text
    return f"{text[:_SHOWN]}… ({len(text)} characters)"


def _personal(entity: Entity) -> set[str]:
    # Custom fields, tags and people may hold anything.
    return {column.name for column in entity.columns if column.personal} | _ANY_TEXT
