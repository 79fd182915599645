"""Which errors a command may end with, and how they are told."""

from pydantic import ValidationError
from sqlalchemy.exc import DBAPIError

from bridge_pipeline.settings import Settings


def is_expected(error: Exception) -> bool:
    """Whether the error's own text says what was tried and what to do.

    The library raises classes of its own exactly where that is so.
    """
    own = type(error).__module__.startswith("bridge_pipeline.")
    return own or isinstance(error, ValidationError | DBAPIError | OSError)


def is_wrong_usage(error: Exception) -> bool:
    """Whether the command was given something that cannot be: a name, a file, a setting."""
    return isinstance(error, ValueError | LookupError)


def described(error: Exception) -> str:
    """The error in words, without values that may be secret."""
    if isinstance(error, ValidationError):
        # Its own text quotes what it was given.
        lines = (f"{_place(error, part['loc'])}: {part['msg']}" for part in error.errors(include_input=False))
        return "\n".join(lines)
    if isinstance(error, DBAPIError):
        return f"the database did not do what was asked: {str(error.orig).strip()}"
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror}: {error.filename}" if error.filename else error.strerror
    return str(error) or type(error).__name__


def _place(error: ValidationError, location: tuple[int | str, ...]) -> str:
    place = ".".join(str(part) for part in location)
    return f"BRIDGE_{place.upper()}" if error.title == Settings.__name__ else place
