"""Names become partition keys and paths, so nothing else may pass for one."""

from datetime import UTC, date, datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridge_pipeline import naming
from bridge_pipeline.naming import Home, InvalidKey

HOME = Home(Path("/srv/bridge"))


@pytest.mark.parametrize("key", ["a", "0", "acme-helpdesk", "a_b-c", "x" * 41])
def test_names_that_may_be_keys(key):
    assert naming.checked_key("connection", key) == key


@pytest.mark.parametrize(
    "key",
    ["", "x" * 42, "-a", "_a", "Acme", "a b", "a.b", "a|b", "a/b", "../../x", "acme\n", "é", "a\0", None, 7],
)
def test_names_that_may_not(key):
    with pytest.raises(InvalidKey, match="connection"):
        naming.checked_key("connection", key)


@given(st.text(max_size=50))
def test_no_text_leads_out_of_the_audit_folder(text):
    try:
        path = HOME.audit_of(text, text, "tickets", date(2016, 3, 1))
    except InvalidKey:
        return
    assert path.relative_to(HOME.audit) == Path(text, text, "tickets", "2016-03-01")


@pytest.mark.parametrize(
    "path_of",
    [
        lambda tenant, name: HOME.journal_of(tenant, name, "tickets", "label"),
        lambda tenant, name: HOME.landing_of(tenant, name, "tickets"),
        lambda tenant, name: HOME.audit_of(tenant, name, "tickets", date(2016, 3, 1)),
        lambda tenant, name: HOME.report_of(tenant, name, date(2016, 3, 1)),
    ],
)
@pytest.mark.parametrize("pair", [("../x", "ok"), ("ok", "../x"), ("a/b", "ok"), ("ok", "")])
def test_every_path_builder_checks_tenant_and_connection(path_of, pair):
    with pytest.raises(InvalidKey):
        path_of(*pair)


def test_the_grammar():
    assert naming.partition_key("acme-helpdesk", date(2016, 3, 1)) == "acme-helpdesk|2016-03-01"
    assert naming.asset_key("extracted", "tickets") == ["extracted", "tickets"]
    assert naming.audit_name(1) == "v0001"
    assert naming.audit_name(12345) == "v12345"
    start, end = datetime(2016, 3, 1, tzinfo=UTC), datetime(2016, 3, 2, 1, 2, 3, tzinfo=UTC)
    assert naming.span_label(start, end) == "20160301T000000Z--20160302T010203Z"


def test_a_partition_key_is_never_made_of_a_wrong_name():
    with pytest.raises(InvalidKey):
        naming.partition_key("a|b", date(2016, 3, 1))


def test_all_state_lies_under_the_home():
    folders = [getattr(HOME, name) for name, kind in vars(Home).items() if isinstance(kind, property)]
    assert len(folders) == len(set(folders)) >= 8
    assert all(HOME.root in folder.parents for folder in folders)
