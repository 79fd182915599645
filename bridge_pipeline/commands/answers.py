"""How commands answer: one JSON document or readable text on stdout, all else on stderr."""

import errno
import io
import json
import os
import stat
import sys
from collections.abc import Callable, Iterable
from datetime import date
from typing import TYPE_CHECKING, Annotated, Any, TextIO

import typer

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from bridge_pipeline.database.workspace import Workspace

Json = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout.")]
ConnectionName = Annotated[str, typer.Argument(metavar="CONNECTION", help="Name of the connection.")]


def examples(*lines: str) -> str:
    """The end of a command's help."""
    return "Examples:\n\n" + "\n\n".join(lines)


def parse_day(text: str) -> date:
    """A day as commands take it: `2025-01-31`.

    Raises:
        typer.BadParameter: it is not written so, or there is no such day.
    """
    if isinstance(text, date):
        return text
    try:
        if len(text) == len("YYYY-MM-DD"):
            return date.fromisoformat(text)
    except ValueError:
        pass
    raise typer.BadParameter(f"{text!r} is not a day; write it as YYYY-MM-DD")


def opened() -> "Workspace":
    """Reads the settings, sets up logging and opens the workspace, which is made where it is missing."""
    from bridge_pipeline.database.workspace import open_workspace

    return open_workspace(start_logging())


def start_logging() -> Any:
    """Sets up logging into the home and returns the settings; opens nothing."""
    from bridge_pipeline import logs, settings
    from bridge_pipeline.naming import Home

    configuration = settings.load()
    logs.configure(configuration, Home(configuration.home))
    return configuration


def answer(document: Any, as_json: bool, show: Callable[["Console"], None]) -> None:
    """Prints `document` as JSON, or lets `show` print it readably."""
    if as_json:
        print_json(document)
    else:
        show(screen())


class _Unheard(io.FileIO):
    """A pipe, terminal or file that takes what nobody reads any more."""

    def __init__(self, descriptor: int, closefd: bool) -> None:
        super().__init__(descriptor, "w", closefd=closefd)
        # A terminal that was closed is no terminal any more, and says what a disk says of an error.
        device = stat.S_ISCHR(os.fstat(descriptor).st_mode)
        self._gone = {errno.EPIPE, errno.EIO} if device else {errno.EPIPE}

    def write(self, data: Any, /) -> int | None:
        try:
            return super().write(data)
        except OSError as error:
            if error.errno not in self._gone:
                raise
            return len(data)


def outlast_readers() -> None:
    """Lets this process write its answers and notes whether anybody still reads them or not.

    How the work went decides its code, not who has read enough of what it says. Closed streams go nowhere.
    """
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            # The lowest free descriptor is that of the stream.
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115 - it stays open
            continue
        setattr(sys, name, unheard(stream.fileno(), stream, closefd=False))


def unheard(descriptor: int, like: TextIO, closefd: bool = True) -> TextIO:
    """A stream to a descriptor that writes as `like` does, and outlasts its readers."""
    file = io.BufferedWriter(_Unheard(descriptor, closefd))
    same = {"encoding": like.encoding, "errors": like.errors, "line_buffering": like.line_buffering}
    return io.TextIOWrapper(file, **same)


def print_json(document: Any) -> None:
    """Prints one JSON document on stdout."""
    import orjson

    text = orjson.dumps(document, default=str, option=orjson.OPT_INDENT_2 | orjson.OPT_NON_STR_KEYS)
    sys.stdout.write(text.decode() + "\n")
    sys.stdout.flush()


def screen(stderr: bool = False) -> "Console":
    """A console on stdout or stderr that takes texts as they are: data is no markup."""
    from rich.console import Console

    # What is no terminal has no width that lines must fit into.
    width = None if (sys.stderr if stderr else sys.stdout).isatty() else 240
    return Console(stderr=stderr, width=width, markup=False, highlight=False, emoji=False, soft_wrap=True)


def note(text: str) -> None:
    """Prints a line on stderr."""
    screen(stderr=True).print(text)


def table(columns: Iterable[str], rows: Iterable[Iterable[object]], title: str | None = None) -> "Table":
    """A table; numbers stand to the right, and characters that would steer a terminal are shown."""
    from rich import box
    from rich.table import Table

    result = Table(box=box.SIMPLE_HEAD, title=title, title_justify="left", title_style="bold")
    cells = [list(row) for row in rows]
    for index, column in enumerate(columns):
        numbers = all(isinstance(row[index], int) for row in cells)
        result.add_column(column, justify="right" if numbers and cells else "left", overflow="fold")
    for row in cells:
        result.add_row(*(_cell(value) for value in row))
    return result


def printable(text: str) -> str:
    """`text` with everything but printable characters and line breaks shown as an escape."""
    return "".join(c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode() for c in text)


def _cell(value: object) -> str:
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, dict | list):
        return printable(json.dumps(value, ensure_ascii=False))
    return f"{value:,}" if isinstance(value, int) else printable(str(value))
