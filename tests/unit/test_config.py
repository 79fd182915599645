"""What the configs of connectors share."""

import pytest
from pydantic import TypeAdapter, ValidationError

from bridge_pipeline.connector_kit.config import Address

ADDRESS = TypeAdapter(Address)


def test_an_address_loses_its_last_slash():
    assert ADDRESS.validate_python("https://desk.example.com/") == "https://desk.example.com"


@pytest.mark.parametrize(
    ("written", "said"),
    [
        ("desk.example.com", "must be an address"),
        ("ftp://desk.example.com", "must be an address"),
        ("https://", "must be an address"),
        ("https://[::1", "must be an address"),
        ("http://127.0.0.1:99999", "must be an address"),
        ("https://desk.example.com:port", "must be an address"),
        ("https://desk.example.com:0", "must be an address"),
        ("https://me:secret@desk.example.com", "no credential"),
        ("https://desk.example.com?token=1", "no credential"),
        ("https://desk.example.com#top", "no credential"),
    ],
)
def test_what_is_more_or_less_than_an_address_is_refused(written, said):
    with pytest.raises(ValidationError, match=said):
        ADDRESS.validate_python(written)
