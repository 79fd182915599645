"""Which program parses: a fingerprint of all that decides what a record is parsed to.

It takes in more than that, the whole program and the libraries that read JSON and make rows. A new version
costs one extraction that parses everything; a module that was forgotten here would cost wrong rows.
"""

import functools
import hashlib
import sys
import time
from pathlib import Path

import msgspec
import numpy as np
import orjson
import psutil
import pyarrow as pa

import bridge_pipeline

_IMPORTED = time.time()


@functools.cache
def fingerprint(connector: str) -> str | None:
    """SHA-256 of what decides what a record of a connector is parsed to.

    None where that is not certain: a file of the program is no longer the one that this process imported.
    """
    # One that was forked had imported them before it began.
    began = min(_IMPORTED, psutil.Process().create_time())
    return fingerprint_of(connector, Path(bridge_pipeline.__file__).parent, began)


def fingerprint_of(connector: str, folder: Path, began: float) -> str | None:
    """`fingerprint`, of the sources in a folder and a process that began then (seconds since 1970)."""
    libraries = [(each.__name__, each.__version__) for each in (msgspec, np, orjson, pa)]
    digest = hashlib.sha256(repr((connector, sys.version, libraries)).encode())
    sources = sorted(folder.rglob("*.py"))
    for path in sources:
        # Unlike the time of its content, nobody sets that of a file's last change.
        if path.stat().st_ctime >= began:
            return None
        source = path.read_bytes()
        digest.update(f"\n{path.relative_to(folder).as_posix()} {len(source)}\n".encode() + source)
    return digest.hexdigest() if sources else None
