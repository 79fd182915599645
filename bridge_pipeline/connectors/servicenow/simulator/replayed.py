"""A recorded incident log served as an instance, as it stood at a moment (semantics, rule 32).

The log holds display texts: its choices (`Active`, `3 - Moderate`, `-100`) are served as those of
an instance that has just these values. What it refers to by name becomes rows that hold no more
than the name. Nothing is made up, hidden or changed here.
"""

from datetime import datetime
from pathlib import Path

from bridge_pipeline.connector_kit.incident_log import UNKNOWN, IncidentLog, created, log_time
from bridge_pipeline.connectors.servicenow.simulator.schema import COLUMNS, REFERENCES
from bridge_pipeline.connectors.servicenow.simulator.world import Fields, Row, Table, World, key_of, written

# The log's column → the table of the rows that it names.
_NAMED = {
    "caller_id": "sys_user",
    "opened_by": "sys_user",
    "assigned_to": "sys_user",
    "resolved_by": "sys_user",
    "assignment_group": "sys_user_group",
    "location": "cmn_location",
    "cmdb_ci": "cmdb_ci",
    "vendor": "core_company",
    "problem_id": "problem",
    "rfc": "change_request",
    "caused_by": "change_request",
}
_AS_IT_IS = (
    "number",
    "active",
    "reassignment_count",
    "reopen_count",
    "made_sla",
    "contact_type",
    "category",
    "subcategory",
    "impact",
    "urgency",
    "priority",
    "knowledge",
    "notify",
    "u_symptom",
    "u_priority_confirmation",
    "sys_created_by",
    "sys_updated_by",
)
_NUMBERED = ("problem", "change_request")


def replayed(path: Path, clock: datetime) -> World:
    """The instance that the log tells of; its clock stands still."""
    log = IncidentLog(path, clock, tuple(_NAMED))
    names = {table: {} for table in _NAMED.values()}
    for column, table in _NAMED.items():
        for name, moment in log.first_seen[column].items():
            names[table][name] = min(names[table].get(name, moment), moment)
    tables = {table: _named(table, seen) for table, seen in names.items()}
    tables["incident"] = _incidents(log)
    tables["sys_journal_field"] = _table("sys_journal_field", lambda row: {}, True)
    return World(tables, clock)


def incident_key(number: str) -> str:
    """The `sys_id` of an incident of the log."""
    return key_of("incident", number)


def _incidents(log: IncidentLog) -> Table:
    versions = list(log.incidents.values())

    def build(row: Row) -> Fields:
        source = versions[row.number].row
        resolved, closed = log.past(source["resolved_at"]), log.past(source["closed_at"])
        fields = {column: _known(source[column]) for column in _AS_IT_IS}
        fields |= {column: _key(table, source[column]) for column, table in _NAMED.items()}
        return fields | {
            "sys_class_name": "incident",
            "short_description": f"{source['category']} / {source['subcategory']}: {source['u_symptom']}",
            "state": _known(source["incident_state"]),
            "incident_state": _known(source["incident_state"]),
            "sys_mod_count": source["sys_mod_count"],
            "opened_at": _written(log_time(source["opened_at"])),
            "resolved_at": _written(resolved),
            "resolved_by": _key("sys_user", source["resolved_by"]) if resolved else "",
            "closed_at": _written(closed),
            "close_code": _known(source["closed_code"]) if closed else "",
        }

    table = _table("incident", build)
    for number, version in enumerate(versions):
        name = version.row["number"]
        times = _written(created(version.row)), _written(version.updated)
        table.add(Row(incident_key(name), number, *times, int(version.row["sys_mod_count"])))
    return table


def _named(name: str, seen: dict[str, datetime]) -> Table:
    """Rows of which no more is known than their name and when it was first written."""
    names = sorted(seen)
    column = "number" if name in _NUMBERED else "name"
    table = _table(name, lambda row: {column: names[row.number], "sys_class_name": name})
    for number, text in enumerate(names):
        table.add(Row(_key(name, text), number, written(seen[text]), written(seen[text])))
    return table


def _table(name: str, build: object, timed_by_creation: bool = False) -> Table:
    return Table(name, COLUMNS[name], REFERENCES[name], build, timed_by_creation)  # type: ignore[arg-type]


def _key(table: str, name: str) -> str:
    return "" if name == UNKNOWN else key_of(table, name)


def _known(text: str) -> str:
    return "" if text == UNKNOWN else text


def _written(moment: datetime | None) -> str:
    return "" if moment is None else written(moment)
