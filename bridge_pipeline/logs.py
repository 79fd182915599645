"""Logging: readable on stderr, JSON lines in the home, and no secret in either.

structlog and the standard library's logging end in the same handlers: `bridge.jsonl` has every
line, `source-errors.jsonl` and `database-errors.jsonl` the troubles of the source API and of the
database. Every line passes `redaction`, whichever library wrote it and wherever it goes.
"""

import fcntl
import logging
import os
import re
import sys
from collections.abc import Callable, Iterator, MutableMapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Protocol

import orjson
import structlog
from structlog.contextvars import bound_contextvars

from bridge_pipeline.naming import Home
from bridge_pipeline.redaction import MASK, RedactingFilter, redact
from bridge_pipeline.settings import Settings

SOURCE, DATABASE = "bridge.source", "bridge.database"
_DATABASE_LOGGERS = (DATABASE, "bridge_pipeline.database", "sqlalchemy", "psycopg")
_DATABASE_ERRORS = {"sqlalchemy", "psycopg", "psycopg2"}
# The first two print every URL with its query, and Client Central has its token there; the last tells
# each step of its own, where one line is enough.
_SILENCED = ("httpx", "httpcore", "alembic.runtime")
_SECRET_FIELD = re.compile(r"token|password|secret|api_?key|authorization|cookie", re.I)
_LOGGED = "_bridge_logged"
_TRACEBACK = "exception"

Event = MutableMapping[str, Any]


class Sink(Protocol):
    """Where readable lines can go."""

    def write(self, text: str, /) -> object: ...

    def flush(self) -> object: ...

    def isatty(self) -> bool: ...


class UnknownLevel(ValueError):
    """LOG_LEVEL names no level."""


_installed: tuple[object, ...] | None = None


def configure(settings: Settings, home: Home | None) -> None:
    """Sets up logging of this process; the same call again changes nothing.

    Args:
        home: where the files go; None for stderr only.

    Raises:
        UnknownLevel: LOG_LEVEL is not a level.
    """
    global _installed
    wanted = (settings.log_level, home, settings.log_max_bytes, settings.log_backups)
    if wanted == _installed:
        return
    level = _level(settings.log_level)
    _configure_structlog()
    logging.setLogRecordFactory(_redacted_record)
    logging.captureWarnings(True)
    for name in _SILENCED:
        logging.getLogger(name).setLevel(logging.WARNING)
    root = logging.getLogger()
    for handler in [each for each in root.handlers if isinstance(each, _Ours)]:
        root.removeHandler(handler)
    for handler in _handlers(settings, home):
        root.addHandler(handler)
    root.setLevel(level)
    _installed = wanted


def configure_for_dagster(settings: Settings) -> None:
    """Sets up logging where Dagster loads the definitions; a command's own set-up stays as it is."""
    configure(settings, Home(settings.home))


@contextmanager
def run_context(**fields: object) -> Iterator[None]:
    """Binds run_id, connection, entity, window and attempt to every line logged within.

    What fails within is logged here, once, while it is still known where it happened.
    """
    with bound_contextvars(**{name: value for name, value in fields.items() if value is not None}):
        try:
            yield
        except Exception as error:
            log_failure(error)
            raise


def log_failure(error: BaseException, event: str = "failed") -> None:
    """Logs an exception with its traceback, unless a caller further down already has."""
    if _installed is None or getattr(error, _LOGGED, False):
        return
    with suppress(AttributeError):
        setattr(error, _LOGGED, True)
    logger = DATABASE if _is_of_database(error) else "bridge"
    structlog.get_logger(logger).error(event, error=str(error), exc_info=error)


@contextmanager
def console(sink: Sink, level: int = logging.WARNING) -> Iterator[None]:
    """Sends what would be logged on stderr to `sink`, and only from `level` on."""
    handlers = [each for each in logging.getLogger().handlers if isinstance(each, _Console)]
    before = [(handler.sink, handler.level) for handler in handlers]
    for handler in handlers:
        handler.show_on(sink)
        handler.setLevel(max(level, handler.level))
    try:
        yield
    finally:
        for handler, (old_sink, old_level) in zip(handlers, before, strict=True):
            handler.show_on(old_sink)
            handler.setLevel(old_level)


# --- Where lines go ---------------------------------------------------------------------------


class _Ours(logging.Handler):
    """A handler that `configure` put there and may take away again."""


class _Console(_Ours):
    """Readable lines on stderr, as it is at the moment of writing: progress bars replace it."""

    sink: Sink | None = None

    def __init__(self) -> None:
        super().__init__()
        self.show_on(None)

    def show_on(self, sink: Sink | None) -> None:
        self.sink = sink
        self.setFormatter(_formatter(_readable((sink or sys.stderr).isatty())))

    def emit(self, record: logging.LogRecord) -> None:
        # A terminal that is gone must not end the work.
        with suppress(OSError, ValueError):
            stream = self.sink or sys.stderr
            stream.write(self.format(record) + "\n")
            stream.flush()


class _JsonFile(_Ours):
    """JSON lines in a file that several processes write and rotate."""

    def __init__(self, path: Path, settings: Settings) -> None:
        super().__init__()
        self._path = path
        self._max_bytes = settings.log_max_bytes
        self._backups = settings.log_backups
        self.setFormatter(_formatter(_as_json))

    def emit(self, record: logging.LogRecord) -> None:
        # A full disk or a removed home must not end the work either.
        with suppress(OSError):
            append(self._path, f"{self.format(record)}\n".encode(), self._max_bytes, self._backups)


def append(path: Path, line: bytes, max_bytes: int, backups: int) -> None:
    """Appends one line; a file that would grow over `max_bytes` is rotated first.

    Raises:
        OSError: it cannot be written.
    """
    # Every line is written under the file's own lock, which the kernel frees with a dying process:
    # no line is torn, and none goes to a file that another process has just rotated away. Opening
    # the file for each line costs some 20 µs and leaves nothing open for children to inherit.
    while True:
        descriptor = _open(path)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            if not _is_current(descriptor, path):
                continue
            size = os.fstat(descriptor).st_size
            if size and size + len(line) > max_bytes:
                _rotate(path, backups)
                continue
            os.write(descriptor, line)
            return
        finally:
            os.close(descriptor)


def _open(path: Path) -> int:
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC
    try:
        return os.open(path, flags, 0o600)
    except FileNotFoundError:
        path.parent.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        path.parent.mkdir(mode=0o700, exist_ok=True)
        return os.open(path, flags, 0o600)


def _is_current(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def _rotate(path: Path, backups: int) -> None:
    """Moves `path` to `path.1` and so on. The last rename frees the name, so nobody rotates between."""
    if not backups:
        path.unlink()
        return
    for number in range(backups - 1, 0, -1):
        with suppress(FileNotFoundError):
            path.with_name(f"{path.name}.{number}").replace(path.with_name(f"{path.name}.{number + 1}"))
    path.replace(path.with_name(f"{path.name}.1"))


def _handlers(settings: Settings, home: Home | None) -> Iterator[logging.Handler]:
    yield _Console()
    if home is None:
        return
    yield _JsonFile(home.logs / "bridge.jsonl", settings)
    for name, concerns in (("source-errors", _concerns_source), ("database-errors", _concerns_database)):
        handler = _JsonFile(home.logs / f"{name}.jsonl", settings)
        handler.setLevel(logging.WARNING)
        handler.addFilter(concerns)
        yield handler


def _concerns_source(record: logging.LogRecord) -> bool:
    return _below(record.name, SOURCE)


def _concerns_database(record: logging.LogRecord) -> bool:
    if any(_below(record.name, logger) for logger in _DATABASE_LOGGERS):
        return True
    # Lines of structlog carry their exception in the event.
    info = record.msg.get("exc_info") if isinstance(record.msg, dict) else record.exc_info
    return _is_of_database(info[1] if isinstance(info, tuple) else info)


def _below(name: str, logger: str) -> bool:
    return name == logger or name.startswith(f"{logger}.")


def _is_of_database(error: object) -> bool:
    while isinstance(error, BaseException):
        if type(error).__module__.partition(".")[0] in _DATABASE_ERRORS:
            return True
        error = error.__cause__
    return False


# --- What a line is made of -------------------------------------------------------------------


def _configure_structlog() -> None:
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *_shared(),
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=False,
    )


def _shared() -> list[Callable[..., Any]]:
    """What is done to lines of structlog and of the standard library alike."""
    return [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.add_log_level,
        structlog.stdlib.PositionalArgumentsFormatter(),
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        _resolve_exception,
    ]


def _formatter(render: Callable[..., str]) -> logging.Formatter:
    return structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=_shared(),
        processors=[
            structlog.stdlib.ProcessorFormatter.remove_processors_meta,
            _format_exception,
            redact_event,
            render,
        ],
    )


def _resolve_exception(_logger: object, _method: str, event: Event) -> Event:
    """`exc_info=True` becomes the exception itself, while it can still be asked for."""
    info = event.pop("exc_info", None)
    error = sys.exc_info()[1] if info is True else info[1] if isinstance(info, tuple) else info
    if isinstance(error, BaseException):
        event["exc_info"] = error
    return event


def _format_exception(_logger: object, _method: str, event: Event) -> Event:
    error = event.pop("exc_info", None)
    if isinstance(error, BaseException):
        # The standard library's form shows no local variables.
        event[_TRACEBACK] = logging.Formatter().formatException((type(error), error, error.__traceback__))
    return event


def redact_event(_logger: object, _method: str, event: Event) -> Event:
    """The last step before rendering: no value leaves unredacted, whatever its type or depth."""
    return {key: _redacted(key, value) for key, value in event.items()}


def _redacted(key: str, value: Any) -> Any:
    if _SECRET_FIELD.search(key) and value is not None:
        return MASK
    if isinstance(value, dict):
        return {redact(str(inner)): _redacted(str(inner), part) for inner, part in value.items()}
    if isinstance(value, list | tuple | set):
        return [_redacted("", part) for part in value]
    if value is None or isinstance(value, bool | int | float):
        return value
    return redact(str(value))


def _as_json(_logger: object, _method: str, event: Event) -> str:
    line = {"timestamp": event.pop("timestamp", None), "level": event.pop("level", None), **event}
    return orjson.dumps(line | {"process": os.getpid()}, default=str, option=orjson.OPT_NON_STR_KEYS).decode()


def _readable(colours: bool) -> Callable[..., str]:
    renderer = structlog.dev.ConsoleRenderer(
        colors=colours, exception_formatter=structlog.dev.plain_traceback, pad_event_to=0
    )

    def render(logger: object, method: str, event: Event) -> str:
        if not logging.getLogger().isEnabledFor(logging.DEBUG):
            # Whoever reads along wants to know what failed; the file says where.
            event.pop(_TRACEBACK, None)
        return renderer(logger, method, event)

    return render


_FILTER = RedactingFilter()


def _redacted_record(*args: Any, **kwargs: Any) -> logging.LogRecord:
    """Makes every record of the standard library redacted, also for handlers that are not ours.

    dlt and Dagster attach their own, at times of their own choice.
    """
    record = logging.LogRecord(*args, **kwargs)
    if isinstance(record.msg, str):
        error = record.exc_info
        with suppress(TypeError, ValueError):
            _FILTER.filter(record)
        record.exc_info = error
    return record


def _level(name: str) -> int:
    try:
        return logging.getLevelNamesMapping()[name.upper()]
    except KeyError:
        raise UnknownLevel(f"LOG_LEVEL must be DEBUG, INFO, WARNING or ERROR, not {name!r}") from None
