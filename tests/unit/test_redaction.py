"""Secrets are taken out of whatever is written, in every form they are written in."""

import io
import json
import logging
from urllib.parse import quote, quote_plus

import pytest

from bridge_pipeline.redaction import MASK, RedactingFilter, redact, redact_bytes, redact_known, remember

SECRET = 'pä ss/w"ö+rd&1'


@pytest.mark.parametrize(
    "form", [SECRET, quote(SECRET, safe=""), quote_plus(SECRET), json.dumps(SECRET)[1:-1]]
)
def test_a_known_secret_is_masked_in_every_form(form):
    remember(SECRET, sent=True)
    assert redact(f"before {form} after") == f"before {MASK} after"
    assert redact_known(f"before {form} after") == f"before {MASK} after"
    assert redact_bytes(f"before {form} after".encode()) == f"before {MASK} after".encode()


def test_the_longer_of_two_secrets_leaves_nothing_behind():
    remember("secret-one")
    remember("secret-one-and-more")
    assert redact_known("secret-one-and-more") == MASK


def test_short_values_do_not_mask_ordinary_words():
    remember("id")
    assert redact("the id of a grid") == "the id of a grid"


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        ("GET /tickets.json?token=1-ab_C.d&page=2", f"GET /tickets.json?token={MASK}&page=2"),
        ("?api_key=x1 and ?apikey=x2", f"?api_key={MASK} and ?apikey={MASK}"),
        ("next=https%3A%2F%2Fh%2Fa%3Ftoken%3Dabc", f"next=https%3A%2F%2Fh%2Fa%3Ftoken%3D{MASK}"),
        ("postgresql://ann:hunter2@host/db", f"postgresql://ann:{MASK}@host/db"),
        ("postgresql://ann@host/db?password=hunter2&x=1", f"postgresql://ann@host/db?password={MASK}&x=1"),
        ("Authorization: Bearer abc.def", f"Authorization: Bearer {MASK}"),
        ("{'authorization': 'Basic YWI6Y2Q='}", f"{{'authorization': 'Basic {MASK}'}}"),
        ("X-Api-Key: 123", f"X-Api-Key: {MASK}"),
        ("https://host:8080/path?page=2", "https://host:8080/path?page=2"),
    ],
)
def test_credentials_are_masked_where_they_stand(text, clean):
    assert redact(text) == clean


def test_bodies_without_a_secret_are_returned_as_they_are():
    remember("something-else")
    body = b"\xff\x00 not utf-8 ?token=kept"
    assert redact_bytes(body) is body


def test_log_lines_arguments_and_tracebacks_are_redacted():
    remember("hunter2-hunter2")
    sink = io.StringIO()
    handler = logging.StreamHandler(sink)
    handler.addFilter(RedactingFilter())
    logger = logging.getLogger("test-redaction")
    logger.propagate = False
    logger.addHandler(handler)
    try:
        raise ValueError("bad hunter2-hunter2")
    except ValueError:
        logger.exception("calling %s with %s", "https://h/?token=abc", "hunter2-hunter2")
    assert "hunter2" not in sink.getvalue()
    assert "abc" not in sink.getvalue()
    assert "ValueError" in sink.getvalue()
