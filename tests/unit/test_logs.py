"""Logs: every line once, whole, in the right file, with its context and without a secret."""

import json
import logging
import multiprocessing
from pathlib import Path

import pytest
import structlog

from bridge_pipeline import logs, redaction, settings
from bridge_pipeline.naming import Home

SECRET = "900913-Hunter2Hunter2"


pytestmark = pytest.mark.usefixtures("no_logging")


@pytest.fixture
def home(tmp_path) -> Home:
    return Home(tmp_path / "home")


@pytest.fixture
def configured(home) -> Home:
    logs.configure(settings.load(home=home.root), home)
    return home


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def test_a_line_carries_what_its_run_is_about(configured):
    context = {"run_id": "r1", "connection": "acme", "entity": "tickets", "window": "w", "attempt": 2}
    with logs.run_context(**context):
        structlog.get_logger("bridge_pipeline.steps.extract").info("batch landed", batch=3)
    structlog.get_logger("bridge").info("after")
    within, after = lines(configured.logs / "bridge.jsonl")
    assert context.items() <= within.items()
    assert (within["event"], within["level"], within["batch"]) == ("batch landed", "info", 3)
    assert not context.keys() & after.keys()


def test_the_standard_librarys_lines_carry_it_too(configured):
    with logs.run_context(run_id="r1", connection="acme"):
        logging.getLogger("alembic").info("upgrade to %s", "0001")
    (line,) = lines(configured.logs / "bridge.jsonl")
    assert (line["event"], line["run_id"], line["logger"]) == ("upgrade to 0001", "r1", "alembic")


def test_configuring_again_adds_no_second_line(configured):
    logs.configure(settings.load(home=configured.root), configured)
    structlog.get_logger("bridge").info("once")
    assert len(lines(configured.logs / "bridge.jsonl")) == 1


def test_troubles_of_source_and_database_have_files_of_their_own(configured):
    structlog.get_logger("bridge.source").info("waiting for quota")
    structlog.get_logger("bridge.source").warning("request failed", status=500)
    logging.getLogger("sqlalchemy.pool").error("connection lost")
    structlog.get_logger("bridge").warning("something else")
    assert [line["event"] for line in lines(configured.logs / "source-errors.jsonl")] == ["request failed"]
    assert [line["event"] for line in lines(configured.logs / "database-errors.jsonl")] == ["connection lost"]
    assert len(lines(configured.logs / "bridge.jsonl")) == 4


def test_a_database_error_is_one_also_as_the_cause_of_another(configured):
    import sqlalchemy as sa

    try:
        try:
            sa.create_engine("sqlite://").connect().execute(sa.text("select nothing"))
        except sa.exc.OperationalError as error:
            raise RuntimeError("no database") from error
    except RuntimeError as error:
        logs.log_failure(error)
    (line,) = lines(configured.logs / "database-errors.jsonl")
    assert "OperationalError" in line["exception"]


def test_a_failure_is_logged_once_and_where_it_happened(configured):
    with (
        pytest.raises(ValueError, match="bad"),
        logs.run_context(run_id="r1"),
        logs.run_context(entity="users"),
    ):
        raise ValueError("bad")
    (line,) = lines(configured.logs / "bridge.jsonl")
    assert (line["run_id"], line["entity"], line["error"]) == ("r1", "users", "bad")


def test_no_secret_reaches_stderr_or_a_file(configured, capsys):
    redaction.remember(SECRET)
    log = structlog.get_logger("bridge.source")
    log.error(f"calling {SECRET}", url="https://h/?token=abc123", nested={"a": [SECRET]}, api_token="xyz987")
    logging.getLogger("httpcore").error("Authorization: Bearer def456")
    logging.getLogger("dlt").error("%s failed", SECRET)
    local = SECRET
    try:
        raise ValueError(f"refused {local}")
    except ValueError:
        log.exception("failed")
        logging.getLogger("dagster").exception("failed")
    seen = capsys.readouterr().err + "".join(path.read_text() for path in configured.logs.iterdir())
    assert "ValueError" in seen
    for secret in (SECRET, "abc123", "xyz987", "def456"):
        assert secret not in seen


def test_handlers_of_other_libraries_are_redacted_too(configured, capsys):
    handler = logging.StreamHandler()
    logger = logging.getLogger("elsewhere")
    logger.propagate = False
    logger.addHandler(handler)
    try:
        raise ValueError("https://ann:hunter2@host")
    except ValueError:
        logger.exception("GET https://h/?token=%s", "abc123")
    logger.removeHandler(handler)
    seen = capsys.readouterr().err
    assert "ValueError" in seen
    assert "abc123" not in seen
    assert "hunter2" not in seen


def test_requests_of_http_libraries_are_not_logged(configured):
    logging.getLogger("httpx").info("HTTP Request: GET https://h/?token=abc123")
    assert not (configured.logs / "bridge.jsonl").exists()


def test_a_migration_tells_no_step_of_its_own(configured):
    logging.getLogger("alembic.runtime.migration").info("Running upgrade 0014 -> 0015")
    assert not (configured.logs / "bridge.jsonl").exists()


def test_stderr_shows_what_failed_and_the_file_where(configured, capsys):
    logs.log_failure(ValueError("bad value"))
    shown = capsys.readouterr().err
    assert "bad value" in shown
    assert "Traceback" not in shown
    assert "\x1b[" not in shown


@pytest.mark.parametrize("level", ["WARNING", "warning"])
def test_the_level_decides_what_is_logged(home, monkeypatch, level):
    monkeypatch.setenv("LOG_LEVEL", level)
    logs.configure(settings.load(home=home.root), home)
    structlog.get_logger("bridge").info("small talk")
    structlog.get_logger("bridge").warning("news")
    assert [line["event"] for line in lines(home.logs / "bridge.jsonl")] == ["news"]


def test_an_unknown_level_is_refused(home, monkeypatch):
    monkeypatch.setenv("LOG_LEVEL", "LOUD")
    with pytest.raises(ValueError, match="LOG_LEVEL"):
        logs.configure(settings.load(home=home.root), home)


def _write_many(path: Path, writer: int) -> None:
    for number in range(400):
        logs.append(path, json.dumps({"writer": writer, "number": number}).encode() + b"\n", 2_000, 60)


def test_processes_that_write_and_rotate_at_once_lose_and_tear_nothing(tmp_path):
    path = tmp_path / "logs" / "bridge.jsonl"
    context = multiprocessing.get_context("fork")
    writers = [context.Process(target=_write_many, args=(path, writer)) for writer in range(4)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    files = sorted(path.parent.iterdir())
    found = [(line["writer"], line["number"]) for file in files for line in lines(file)]
    assert len(files) > 10
    assert all(file.stat().st_size <= 2_000 for file in files)
    assert sorted(found) == [(writer, number) for writer in range(4) for number in range(400)]


def test_only_so_many_old_files_are_kept(tmp_path):
    path = tmp_path / "bridge.jsonl"
    for _ in range(20):
        logs.append(path, b"x" * 60 + b"\n", 100, 2)
    assert sorted(each.name for each in tmp_path.iterdir()) == [
        "bridge.jsonl",
        "bridge.jsonl.1",
        "bridge.jsonl.2",
    ]
