"""What each reason for quarantine means to a reader who knows no JSON, and what can be done.

Every reason that the code can give stands here; a test finds them in the source. A record that an
expectation took out has the expectation's name as its reason, and its sentence says why.
"""

from dataclasses import dataclass

CONTENT, PIPELINE = "data-quality", "data-platform"

_AT_SOURCE = (
    "Have it corrected in the service desk; the record is read again as soon as it has changed there."
)
_MAPPING = (
    "Find out whether the service desk changed its format. If it did, the mapping of this field must "
    "follow; the record is then replayed from quarantine."
)
_DAMAGED = (
    "Extract the day again: damage on the way does not come twice. If it stays, report it to the vendor of "
    "the service desk."
)


@dataclass(frozen=True)
class Reason:
    """A reason in words: what is wrong with the record, what mends it, and who sees to that."""

    sentence: str
    remedy: str
    owner: str = CONTENT


REASONS: dict[str, Reason] = {
    "change_time_in_future": Reason("The record claims to have been changed in the future.", _AT_SOURCE),
    "change_time_missing": Reason(
        "The record does not say when it was changed, so it belongs to no day.", _AT_SOURCE
    ),
    "id_missing": Reason("The record has no id, so it cannot be told from others.", _DAMAGED, PIPELINE),
    "id_out_of_range": Reason(
        "The record's id, or one it refers to, is not a number that the service desk can have given.",
        _MAPPING,
        PIPELINE,
    ),
    "id_wrong_type": Reason(
        "The record's id, or one it refers to, does not look like the ids of this service desk.",
        _MAPPING,
        PIPELINE,
    ),
    "invalid_json": Reason("What arrived cannot be read as a record at all.", _DAMAGED, PIPELINE),
    "invalid_utf8": Reason("The record holds bytes that are no text in any alphabet.", _DAMAGED, PIPELINE),
    "lone_surrogate": Reason(
        "The record holds half a character, such as an emoji that was cut in two.", _AT_SOURCE
    ),
    "not_a_number": Reason(
        "A number field of the record holds something that is not a number (NaN or infinity).", _AT_SOURCE
    ),
    "not_an_object": Reason("Something that is no record stood in the list of records.", _DAMAGED, PIPELINE),
    "nul_character": Reason(
        "A text of the record holds an invisible NUL character, which no database text can hold.", _AT_SOURCE
    ),
    "number_out_of_range": Reason("A number of the record is too large to be kept exactly.", _AT_SOURCE),
    "repeated_key": Reason(
        "A field stands twice in the record with different values, and none is the right one by itself.",
        _DAMAGED,
        PIPELINE,
    ),
    "time_invalid": Reason(
        "A date or time of the record does not exist or cannot be read, such as February 30.", _AT_SOURCE
    ),
    "time_without_zone": Reason(
        "A time of the record does not say in which time zone it is meant.", _MAPPING, PIPELINE
    ),
    "too_deep": Reason("The record is nested deeper than any real record is.", _AT_SOURCE),
    "wrong_type": Reason(
        "A field of the record holds another kind of value than it should, such as a list for a text.",
        _MAPPING,
        PIPELINE,
    ),
}

_TAKEN_OUT = (
    "Look at the examples and have them corrected in the service desk, or replay them once the rule fits."
)


def reason_of(code: str, sentences: dict[str, str], owners: dict[str, str]) -> Reason:
    """The words for a reason; `sentences` and `owners` are those of the batch's checks, by name."""
    if found := REASONS.get(code):
        return found
    if sentence := sentences.get(code):
        return Reason(f"Refused by a check: {sentence}", _TAKEN_OUT, owners.get(code, CONTENT))
    return Reason(f"Refused as “{code}”.", _TAKEN_OUT)
