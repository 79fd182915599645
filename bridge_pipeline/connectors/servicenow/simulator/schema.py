"""The tables that are simulated: their fields in the order of recorded answers, and what they refer to.

The fields are those of the vendor's documented and recorded rows, and of the product's base tables.
"""

_SYSTEM = "sys_id sys_created_on sys_created_by sys_updated_on sys_updated_by sys_mod_count sys_tags"
_TASK = """
    parent made_sla watch_list upon_reject approval_history number opened_by user_input sys_domain state
    knowledge order closed_at cmdb_ci delivery_plan impact active work_notes_list business_service priority
    sys_domain_path time_worked expected_start rejection_goto opened_at business_duration group_list work_end
    approval_set wf_activity work_notes short_description correlation_display delivery_task work_start
    assignment_group additional_assignee_list description calendar_duration close_notes sys_class_name
    closed_by follow_up contact_type urgency company reassignment_count activity_due assigned_to comments
    approval sla_due comments_and_work_notes due_date escalation upon_approval correlation_id location
"""
_TASK_REFERENCES = {
    "parent": "task",
    "opened_by": "sys_user",
    "closed_by": "sys_user",
    "assigned_to": "sys_user",
    "assignment_group": "sys_user_group",
    "sys_domain": "sys_user_group",
    "cmdb_ci": "cmdb_ci",
    "business_service": "cmdb_ci_service",
    "company": "core_company",
    "location": "cmn_location",
}


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


COLUMNS: dict[str, tuple[str, ...]] = {
    "core_company": _words(f"{_SYSTEM} name customer vendor phone website city country"),
    "cmn_location": _words(f"{_SYSTEM} name city country"),
    "sys_user": _words(
        f"""{_SYSTEM} user_name name first_name last_name email title active locked_out roles company
        department location manager time_zone vip phone"""
    ),
    "sys_user_group": _words(f"{_SYSTEM} name description active manager email parent type roles"),
    "incident": _words(
        f"""{_SYSTEM} {_TASK} caller_id category subcategory severity notify incident_state reopen_count
        child_incidents parent_incident problem_id rfc caused_by close_code resolved_at resolved_by vendor
        business_stc calendar_stc hold_reason u_symptom u_priority_confirmation"""
    ),
    # It knows no change of a row: entries are written once.
    "sys_journal_field": _words(
        "sys_id sys_created_on sys_created_by sys_tags name element_id element value"
    ),
    # It has the whole record too, as XML in `payload`.
    "sys_audit_delete": _words(f"{_SYSTEM} tablename documentkey display_value payload"),
    "cmdb_ci": _words(
        f"""{_SYSTEM} name sys_class_name asset_tag serial_number install_status operational_status category
        assigned_to company location manufacturer model_id short_description"""
    ),
    "problem": _words(
        f"{_SYSTEM} {_TASK} problem_state known_error related_incidents resolved_at resolved_by cause_notes"
    ),
    "change_request": _words(
        f"{_SYSTEM} {_TASK} type risk start_date end_date category phase close_code requested_by reason"
    ),
}

REFERENCES: dict[str, dict[str, str]] = {
    "core_company": {},
    "cmn_location": {},
    "sys_user": {
        "company": "core_company",
        "department": "cmn_department",
        "location": "cmn_location",
        "manager": "sys_user",
    },
    "sys_user_group": {"manager": "sys_user", "parent": "sys_user_group"},
    "incident": {
        **_TASK_REFERENCES,
        "caller_id": "sys_user",
        "resolved_by": "sys_user",
        "problem_id": "problem",
        "rfc": "change_request",
        "caused_by": "change_request",
        "parent_incident": "incident",
        "vendor": "core_company",
    },
    "sys_journal_field": {},
    "sys_audit_delete": {},
    "cmdb_ci": {
        "assigned_to": "sys_user",
        "company": "core_company",
        "location": "cmn_location",
        "manufacturer": "core_company",
    },
    "problem": {**_TASK_REFERENCES, "resolved_by": "sys_user"},
    "change_request": {**_TASK_REFERENCES, "requested_by": "sys_user"},
}

# What display mode shows for a choice; `state` has other choices in each table.
_LEVELS = {"1": "1 - High", "2": "2 - Medium", "3": "3 - Low"}
LABELS: dict[str, dict[str, str]] = {
    "priority": {
        "1": "1 - Critical",
        "2": "2 - High",
        "3": "3 - Moderate",
        "4": "4 - Low",
        "5": "5 - Planning",
    },
    "impact": _LEVELS,
    "urgency": _LEVELS,
    "severity": _LEVELS,
    "incident.state": {
        "1": "New",
        "2": "In Progress",
        "3": "On Hold",
        "6": "Resolved",
        "7": "Closed",
        "8": "Canceled",
    },
    "problem.state": {
        "101": "New",
        "102": "Assess",
        "103": "Root Cause Analysis",
        "104": "Fix in Progress",
        "106": "Resolved",
        "107": "Closed",
    },
    "change_request.state": {
        "-5": "New",
        "-4": "Assess",
        "-3": "Authorize",
        "-2": "Scheduled",
        "-1": "Implement",
        "0": "Review",
        "3": "Closed",
        "4": "Canceled",
    },
    "risk": {"1": "Very High", "2": "High", "3": "Moderate", "4": "Low"},
    "install_status": {"1": "Installed", "6": "In Stock", "7": "Retired"},
}
DURATIONS = ("business_duration", "calendar_duration")
# Impact × urgency → priority.
PRIORITIES = {
    ("1", "1"): "1",
    ("1", "2"): "2",
    ("1", "3"): "3",
    ("2", "1"): "2",
    ("2", "2"): "3",
    ("2", "3"): "4",
    ("3", "1"): "3",
    ("3", "2"): "4",
    ("3", "3"): "5",
}
