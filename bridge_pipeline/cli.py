"""The `bridge` command: puts the commands together and turns errors into one line and an exit code.

0: done. 1: the work failed or a check blocked it. 2: wrong usage.
"""

import atexit
import logging
import os
import sys
from contextlib import suppress
from typing import NoReturn

import typer
from typer.exceptions import TyperException

from bridge_pipeline.commands import (
    audit,
    backup,
    certify,
    connections,
    deliveries,
    demo,
    doctor,
    expectations,
    new_connector,
    quarantine,
    records,
    run,
    secrets,
    service,
    simulate,
    tenants,
)
from bridge_pipeline.commands.answers import outlast_readers
from bridge_pipeline.memory import few_collections

app = typer.Typer(
    name="bridge",
    help="Extract a service desk whole, checked and provable.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    epilog="State lies in BRIDGE_HOME, by default .bridge in the project. `bridge COMMAND --help` has more.",
)
for _group in (demo, service, doctor, run, records, certify, backup, simulate, new_connector):
    _group.register(app)
app.add_typer(audit.app, name="audit")
app.add_typer(connections.app, name="connections")
app.add_typer(deliveries.app, name="deliveries")
app.add_typer(expectations.app, name="expectations")
app.add_typer(quarantine.app, name="quarantine")
app.add_typer(secrets.app, name="secrets")
app.add_typer(tenants.app, name="tenants")


def main() -> NoReturn:
    """Runs the command line of this process and exits."""
    arguments = sys.argv[1:]
    codes: list[int] = []
    outlast_readers()
    # What is registered first runs last: after whatever a command leaves to be done at the end.
    atexit.register(_leave, codes)
    with few_collections():
        codes.append(execute(arguments))
    sys.exit(codes[-1])


def _leave(codes: list[int]) -> None:
    """Ends the process with the code that there is, and leaves its memory to the system.

    Python itself would first free every object, one by one: after a run a second and more of work.
    """
    logging.shutdown()
    for stream in (sys.stdout, sys.stderr):
        # On a full disk, as has been told.
        with suppress(OSError):
            stream.flush()
    for code in codes:
        os._exit(code)


def execute(arguments: list[str]) -> int:
    """Runs one command and returns its exit code; shows an error as a line, never as a traceback."""
    as_json = "--json" in arguments
    try:
        # Not standalone: then it returns the code of `typer.Exit` and raises everything else.
        code = typer.main.get_command(app).main(args=arguments, prog_name="bridge", standalone_mode=False)
        return code if isinstance(code, int) else 0
    except TyperException as error:
        return _misused(error, as_json)
    except (KeyboardInterrupt, typer.Abort):
        _complain("stopped; what was finished stays, and running it again goes on from there", as_json)
        return 130
    except SystemExit as ended:
        # Typer takes every broken pipe for that of the answer, and ends without a word.
        if isinstance(ended.__context__, BrokenPipeError):
            return _failed(ended.__context__, as_json)
        raise
    except Exception as error:
        return _failed(error, as_json)


def _misused(error: TyperException, as_json: bool) -> int:
    context = getattr(error, "ctx", None)
    text = error.format_message()
    if not text and context is not None:
        # No command was given: its help is the answer.
        typer.echo(context.get_help(), err=True)
        return 2
    hint = f"\nTry: {context.command_path} --help" if context is not None else ""
    _complain(text + hint, as_json)
    return 2


def _failed(error: Exception, as_json: bool) -> int:
    from bridge_pipeline import logs
    from bridge_pipeline.commands.failures import described, is_expected, is_wrong_usage

    expected = is_expected(error)
    # The terminal gets the line below.
    with logs.console(sys.stderr, logging.CRITICAL):
        logs.log_failure(error, "command failed")
    text = described(error)
    if not expected:
        text += "\nThis was not expected; logs/bridge.jsonl in BRIDGE_HOME has the details."
    _complain(text, as_json)
    return 2 if expected and is_wrong_usage(error) else 1


def _complain(text: str, as_json: bool) -> None:
    from bridge_pipeline.commands.answers import print_json, printable, screen
    from bridge_pipeline.redaction import redact

    text = printable(redact(text.strip()))
    # Where the answer could not be written, this may not be either.
    with suppress(OSError):
        screen(stderr=True).print(f"error: {text}", style="red")
    if as_json:
        with suppress(OSError):
            print_json({"error": text})


if __name__ == "__main__":
    main()
