"""A certificate as it is written: its JSON document, and a page that says the same to a reader.

What it says is found out in `certify` and `reckon`.
"""

import hashlib
from collections import Counter
from pathlib import Path, PurePosixPath
from typing import Any

import orjson
import psycopg
import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import distinct_on

from bridge_pipeline import naming
from bridge_pipeline.connector_kit.journal import make_folder, write_durably
from bridge_pipeline.database import certificates
from bridge_pipeline.database import tables as t
from bridge_pipeline.database.certificates import Certificate
from bridge_pipeline.database.registry import ConnectionRecord
from bridge_pipeline.database.workspace import Workspace
from bridge_pipeline.failpoints import reach
from bridge_pipeline.model import Window
from bridge_pipeline.redaction import redact
from bridge_pipeline.steps.chain import Draft
from bridge_pipeline.steps.reckon import EXPLANATIONS, FINDINGS, NAMED, UNEXPLAINED, Named

FORMAT = 1
CERTIFICATE = "certificate"
_TEMPLATE = Path(__file__).with_name("certificate.html.j2")
# Ids that the page shows of one kind; the JSON file has more.
_SHOWN = 200
_DUMP = orjson.OPT_INDENT_2 | orjson.OPT_SORT_KEYS | orjson.OPT_NAIVE_UTC
_MEANINGS = {
    "loaded": "in the table, in the newest version that is due",
    "deleted": "gone from the source, and marked so in the table",
    "archived": "archived by the source; the table keeps what it has",
    "forbidden": "there, but this credential may not read them",
    "quarantined": "rejected, and kept with their exact bytes",
    "awaited": "changed on days that have not been extracted, or not settled",
    UNEXPLAINED: "not accounted for",
}
_TERMS = ("outside", "loaded", "unchanged", "superseded", "quarantined", "rejected", "duplicate", "waiting")


def section(
    entity: str, counts: dict[str, int], named: list[Named], live: int, nameless: int
) -> dict[str, Any]:
    """What a certificate says of the records of one entity.

    Args:
        nameless: how many without a usable id are in quarantine; they are no `ids`, but explained.
    """
    explained = Counter({"quarantined": nameless})
    for finding, ids in counts.items():
        explained[FINDINGS[finding].explanation] += ids
    names = {key: ids for key, ids in counts.items() if key in NAMED}
    lost = explained[UNEXPLAINED]
    lost_named = sum(FINDINGS[each.finding].explanation == UNEXPLAINED for each in named)
    return {
        "entity": entity,
        "ids": sum(counts.values()),
        "rows": live,
        "explained": {explanation: explained[explanation] for explanation in EXPLANATIONS},
        "findings": dict(sorted(counts.items())),
        "named": [
            {
                "id": each.id,
                "explanation": FINDINGS[each.finding].explanation,
                "finding": each.finding,
                "words": FINDINGS[each.finding].words,
                "evidence": redact(each.evidence) if each.evidence else None,
                "changed_at_source": each.at_the_source,
                "changed_in_table": each.in_the_table,
            }
            for each in named
        ],
        # Of so many ids not each is listed in `named`.
        "unnamed": {
            UNEXPLAINED: lost - lost_named,
            "explained": sum(names.values()) - lost - (len(named) - lost_named),
        },
    }


def unexplained(section: dict[str, Any]) -> int:
    """How many records of an entity are not accounted for, with those that nobody can name."""
    nameless = len(section["without_id"]["lost"]) + section["source"]["uncounted"]
    return section["explained"][UNEXPLAINED] + nameless


def document(
    connection: sa.Connection,
    record: ConnectionRecord,
    scope: Window | None,
    sections: list[dict[str, Any]],
    previous: Certificate | None,
    number: int,
) -> dict[str, Any]:
    """The certificate's document, without what is known only of its run."""
    span = (scope.start, scope.end) if scope else (None, None)
    for each in sections:
        each["batches"] = certificates.totals(connection, record.name, each["entity"], *span)
        each["batches"]["holds"] = _holds(each["batches"])
        each["unexplained"] = unexplained(each)
    return {
        "format": FORMAT,
        "kind": CERTIFICATE,
        "number": number,
        "tenant": record.tenant,
        "connection": record.name,
        "connector": record.connector,
        "source": record.config.get("base_url"),
        "scope": None if scope is None else {"from": _first(scope), "to": scope.last_day.isoformat()},
        "verdict": _verdict(sections),
        "entities": sections,
        "covers": _covers(connection, record.name, [each["entity"] for each in sections]),
        "previous": None if previous is None else {"number": previous.number, "sha256": previous.sha256},
        "command": _command(record.name, scope, [each["entity"] for each in sections], record),
    }


def write(
    workspace: Workspace, document: dict[str, Any], listings: dict[str, int], scope: Window | None
) -> Certificate:
    """Writes both files, durably; they count for nothing until the ledger lists them."""
    folder = workspace.home.certificates_of(document["tenant"], document["connection"])
    make_folder(folder)
    path = folder / f"{naming.certificate_name(document['number'])}.json"
    data = orjson.dumps(document, option=_DUMP) + b"\n"
    page = redact(render(orjson.loads(data), hashlib.sha256(data).hexdigest())).encode()
    write_durably(path, data, alone=True)
    reach("certify.document")
    write_durably(path.with_suffix(".html"), page, alone=True)
    return Certificate(
        connection=document["connection"],
        number=document["number"],
        tenant=document["tenant"],
        window_start=scope.start if scope else None,
        window_end=scope.end if scope else None,
        verdict=document["verdict"],
        listings=listings,
        document=orjson.loads(data),
        path=str(path.relative_to(workspace.home.audit)),
        sha256=hashlib.sha256(data).hexdigest(),
        page_sha256=hashlib.sha256(page).hexdigest(),
    )


def chain_entry(certificate: Certificate) -> Draft:
    """What the tenant's signed chain says of a certificate: both files, its number and verdict."""
    path = PurePosixPath(certificate.path).relative_to(certificate.tenant)
    return Draft(
        CERTIFICATE,
        files={str(path): certificate.sha256, str(path.with_suffix(".html")): certificate.page_sha256},
        facts={
            "connection": certificate.connection,
            "number": certificate.number,
            "verdict": certificate.verdict,
            "previous": certificate.document["previous"],
        },
    )


def render(document: dict[str, Any], sha256: str) -> str:
    """The page of a certificate: self-contained, without a script."""
    # Its import takes a moment that only a page pays for.
    from jinja2 import Environment, StrictUndefined

    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["number"] = lambda value: f"{value:,}"
    template = environment.from_string(_TEMPLATE.read_text(encoding="utf-8"))
    return template.render(
        c=document,
        sha256=sha256,
        verdict=verdict_words(document),
        meanings=_MEANINGS,
        findings=FINDINGS,
        terms=_TERMS,
        shown=_SHOWN,
    )


def verdict_words(document: dict[str, Any]) -> tuple[str, str]:
    """The verdict as a title and a sentence."""
    lost = sum(each["unexplained"] for each in document["entities"])
    records = sum(each["ids"] + each["without_id"]["in_quarantine"] for each in document["entities"])
    if document["verdict"] == "blocked":
        held = ", ".join(_vanished(each) for each in document["entities"] if each["disappeared"]["blocked"])
        return (
            "Held back",
            f"{held} are gone from the source all at once. None of them is marked as deleted until somebody "
            "accepts it.",
        )
    if document["verdict"] == "incomplete":
        broken = [each["entity"] for each in document["entities"] if not each["batches"]["holds"]]
        more = f" What was fetched of {', '.join(broken)} does not add up." if broken else ""
        return (
            "Incomplete",
            f"{lost:,} records are not accounted for; their ids stand in the certificate.{more}",
        )
    awaited = sum(each["explained"]["awaited"] for each in document["entities"])
    if awaited:
        return (
            "Complete, as far as was extracted",
            f"Every one of {records - awaited:,} records is accounted for. {awaited:,} more changed on days "
            "that have not been extracted.",
        )
    return "Complete", f"Every one of {records:,} records is accounted for."


def _vanished(section: dict[str, Any]) -> str:
    gone = section["disappeared"]
    before = f" (after {gone['recently']:,} in the week before)" if gone["recently"] else ""
    return f"{gone['rows']:,} of {gone['of']:,} {section['entity']}{before}"


def table_digest(connection: sa.Connection, name: str, entity: str) -> dict[str, Any]:
    """Rows of a table and the SHA-256 of their ids, content hashes and deletions, one row a line.

    Lines are `id TAB content_hash TAB deleted_at`, in the order of the audit files: by length of id,
    then id; placeholders are left out.
    """
    quoted = name.replace("'", "''")
    statement = f"""copy (select id, content_hash, deleted_at from desk.{entity}
        where connection = '{quoted}' and not placeholder order by length(id), id collate "C") to stdout"""
    driver: psycopg.Connection = connection.connection.driver_connection  # type: ignore[assignment]
    digest, rows = hashlib.sha256(), 0
    with driver.cursor() as cursor, cursor.copy(statement.encode()) as copy:
        for part in copy:
            data = bytes(part)
            digest.update(data)
            rows += data.count(b"\n")
    return {"rows": rows, "sha256": digest.hexdigest()}


def _holds(totals: dict[str, int]) -> bool:
    return totals["fetched"] == sum(totals[term] for term in _TERMS)


def _verdict(sections: list[dict[str, Any]]) -> str:
    if any(each["disappeared"]["blocked"] for each in sections):
        return "blocked"
    sound = all(not each["unexplained"] and each["batches"]["holds"] for each in sections)
    return "complete" if sound else "incomplete"


def _covers(connection: sa.Connection, name: str, entities: list[str]) -> dict[str, Any]:
    """The current audit files: how many, and one SHA-256 over `<path> <csv> <manifest>` lines by path."""
    a = t.audit_files
    query = (
        sa.select(a.c.path, a.c.sha256, a.c.manifest_sha256)
        .where(a.c.connection == name, a.c.entity.in_(entities))
        .ext(distinct_on(a.c.entity, a.c.day))
        .order_by(a.c.entity, a.c.day, a.c.version.desc())
    )
    lines = sorted(f"{row.path} {row.sha256} {row.manifest_sha256}\n" for row in connection.execute(query))
    return {
        "audit_files": len(lines),
        "audit_files_sha256": hashlib.sha256("".join(lines).encode()).hexdigest(),
    }


def _command(name: str, scope: Window | None, entities: list[str], record: ConnectionRecord) -> str:
    parts = ["bridge certify", name]
    if scope is not None:
        parts.append(f"--from {_first(scope)} --to {scope.last_day}")
    if set(entities) != set(record.entities):
        parts.append(f"--entities {','.join(entities)}")
    return " ".join(parts)


def _first(scope: Window) -> str:
    return scope.start.date().isoformat()
