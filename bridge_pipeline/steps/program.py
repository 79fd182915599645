"""Which program parses: a fingerprint of all that decides what a record is parsed to.

It takes in more than that, the whole program and the libraries that read JSON and make rows. A new version
costs one extraction that parses everything; a module that was forgotten here would cost wrong rows.
"""

import functools
import hashlib
import os
import sys
import time
from pathlib import Path

import msgspec
import numpy as np
import orjson
import psutil
import pyarrow as pa

import bridge_pipeline

# Before anything was imported; so it is of one that is forked from this one, which had imported it.
_BEGAN = min(time.time(), psutil.Process().create_time())
_FOLDER = Path(bridge_pipeline.__file__).parent
# Links and names may come to lead to another program, which need not be younger than this process.
_ORIGIN = _FOLDER.stat()


def fingerprint(connector: str) -> str | None:
    """SHA-256 of what decides what a record of a connector is parsed to.

    None where that is not certain: a file of the program is no longer the one that this process imported.
    It holds for the moment alone: what this process imports later, and each process that it starts, is of
    what lies there by then.
    """
    return fingerprint_of(connector, _FOLDER, _ORIGIN, _BEGAN)


def fingerprint_of(connector: str, folder: Path, origin: os.stat_result, began: float) -> str | None:
    """`fingerprint`, of the sources in a folder, which was `origin` when they were imported by a process that
    began then (seconds since 1970)."""
    try:
        if not os.path.samestat(folder.stat(), origin):
            return None
        found = tuple((path, path.stat().st_ctime) for path in sorted(folder.rglob("*.py")))
        # Unlike the time of its content, nobody sets that of a file's last change.
        if not found or max(changed for _, changed in found) >= began:
            return None
        sources = _sources(folder, found)
    except OSError:
        # It is being replaced.
        return None
    libraries = [(each.__name__, each.__version__) for each in (msgspec, np, orjson, pa)]
    return hashlib.sha256(repr((connector, sys.version, libraries, sources)).encode()).hexdigest()


@functools.lru_cache(maxsize=1)
def _sources(folder: Path, found: tuple[tuple[Path, float], ...]) -> str:
    """SHA-256 of files, each with the time of its last change, after which it is read again."""
    digest = hashlib.sha256()
    for path, _ in found:
        source = path.read_bytes()
        digest.update(f"\n{path.relative_to(folder).as_posix()} {len(source)}\n".encode() + source)
    return digest.hexdigest()
