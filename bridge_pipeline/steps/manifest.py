"""Whether an audit file's manifest tells the truth about it: its columns, rows, hashes and place."""

import csv
import hashlib
import sys
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

import orjson

from bridge_pipeline import naming

_LEFT_BEGINS, _LEFT_ENDS = b'  "left": [\n', b"  ],\n"
Previous = tuple[int, str]


def contradictions(
    root: Path, tenant: str, path: str, sha256: str, previous: Previous | None
) -> Iterator[str]:
    """What the manifest of an audit file says that is not so, each in words.

    Args:
        root: the tenant's audit folder.
        path: of the CSV below it; its SHA-256 and that of the manifest are as they were signed.
        previous: version and SHA-256 of the day's version before this one.
    """
    target = root / path
    try:
        manifest = read_manifest(target.with_suffix(".json"))
        counted = _counted(target)
    except (OSError, ValueError, csv.Error) as error:
        yield f"it or its file cannot be read: {error}"
        return
    before = None if previous is None else dict(zip(("version", "sha256"), previous, strict=True))
    true = _place(tenant, path) | counted | {"format": 1, "sha256": sha256, "previous": before}
    for name, value in true.items():
        if name not in manifest:
            yield f"it does not say {name}"
        elif manifest[name] != value:
            yield f"it says {name} {manifest[name]!r}, and it is {value!r}"


def read_manifest(path: Path) -> dict[str, Any]:
    """A manifest without the ids that left, of which there may be as many as there were rows.

    Raises:
        ValueError: it is no manifest.
    """
    with path.open("rb") as file:
        manifest = orjson.loads(b"".join(_without_left(file)))
    if not isinstance(manifest, dict):
        raise ValueError("it is no manifest")
    return manifest


def _without_left(file: BinaryIO) -> Iterator[bytes]:
    within = False
    for line in file:
        if line == _LEFT_BEGINS:
            within = True
            yield b'  "left": [\n'
        elif within and line != _LEFT_ENDS:
            orjson.loads(line.removesuffix(b"\n").removesuffix(b","))
        else:
            within = False
            yield line


def _place(tenant: str, path: str) -> dict[str, Any]:
    """What the path says.

    Raises:
        ValueError: it is not the path of an audit file.
    """
    parts = PurePosixPath(path).parts
    stem = PurePosixPath(path).stem
    digits = stem.removeprefix("v")
    if len(parts) != 4 or not digits.isdecimal() or naming.audit_name(int(digits)) != stem:
        raise ValueError(f"{path} is not the path of an audit file")
    connection, entity, day, _ = parts
    place = {"tenant": tenant, "connection": connection, "entity": entity, "day": day}
    return place | {"version": int(digits)}


def _counted(path: Path) -> dict[str, Any]:
    """What the CSV holds, read row by row.

    Raises:
        ValueError: it has no header with the columns that every audit file has.
    """
    csv.field_size_limit(sys.maxsize)
    digest, rows, tombstones = hashlib.sha256(), 0, 0
    with path.open(encoding="utf-8", newline="") as file:
        reader = csv.reader(file, strict=True)
        columns = next(reader, [])
        hashed, deleted = columns.index("content_hash"), columns.index("deleted_at")
        for row in reader:
            if len(row) != len(columns):
                raise ValueError(f"row {rows + 1} has {len(row)} cells and {len(columns)} columns")
            digest.update(f"{row[hashed]}\n".encode())
            rows += 1
            tombstones += bool(row[deleted])
    counts = {"rows": rows, "tombstones": tombstones, "rows_sha256": digest.hexdigest()}
    return counts | {"columns": columns}
