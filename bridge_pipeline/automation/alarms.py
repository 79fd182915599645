"""Alarms of Dagster's runs: what failed in them, as the library tells it."""

from collections.abc import Iterator
from contextlib import suppress
from typing import TYPE_CHECKING

import dagster as dg

from assets.partitions import scope_of
from bridge_pipeline.database.workspace import Workspace
from bridge_pipeline.steps.announce import Failure, tell_failed_run

if TYPE_CHECKING:
    from dagster_shared.error import SerializableErrorInfo

# A blocking check ends its step with this; the ledger's verdict is told by `steps.check`.
_BLOCKED = "DagsterAssetCheckFailedError"
# How the message of an error of the library begins: with its class.
_OWN = "bridge_pipeline."


def tell_failed(workspace: Workspace, instance: dg.DagsterInstance, run: dg.DagsterRun) -> None:
    """Puts the alarm of a failed run into the outbox, once however often it is called."""
    failures = _failures(instance, run.run_id)
    others = [failure for failure in failures if failure.kind != _BLOCKED]
    name, days = None, None
    # A run of the models has no partition.
    with suppress(ValueError):
        scope = scope_of(run)
        name, days = scope.connection, (scope.days[0], scope.days[-1])
    tell_failed_run(workspace, run.run_id, name, days, failures, bool(failures) and not others)


def _failures(instance: dg.DagsterInstance, run_id: str) -> list[Failure]:
    found = []
    for entry in instance.all_logs(run_id, of_type=dg.DagsterEventType.STEP_FAILURE):
        event = entry.get_dagster_event()
        error = told_of(event.step_failure_data.error)
        message, kind = (error.message, error.cls_name or "failed") if error else ("", "failed")
        found.append(Failure(event.step_key or "step", message, kind))
    return found


def told_of(error: "SerializableErrorInfo | None") -> "SerializableErrorInfo | None":
    """The error to tell of: the first one of the library's own, which says what was tried and what to do;
    without such a one that which caused all others."""
    chain = list(_chain(error))
    return next((each for each in chain if each.message.startswith(_OWN)), chain[-1] if chain else None)


def _chain(error: "SerializableErrorInfo | None") -> "Iterator[SerializableErrorInfo]":
    while error is not None:
        yield error
        error = error.cause
