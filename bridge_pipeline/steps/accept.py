"""A reviewer lets a blocked batch through: ledger and audit chain say who and why, and it goes on."""

from bridge_pipeline.database import ledger
from bridge_pipeline.database.engine import transaction
from bridge_pipeline.database.ledger import Batch
from bridge_pipeline.database.workspace import Workspace
from bridge_pipeline.masking import masked_statement
from bridge_pipeline.steps.announce import tell_accepted
from bridge_pipeline.steps.audit import audit_loaded, audit_window
from bridge_pipeline.steps.chain import Draft, append, export_chain
from bridge_pipeline.steps.load import load
from bridge_pipeline.steps.replay import finish


def accept_batch(workspace: Workspace, batch_id: int, by: str, reason: str) -> Batch:
    """Accepts a blocked batch, loads it and brings the audit files of its days up to it.

    Stopped in between, the next run of any of its days goes on from there.

    Raises:
        UnknownBatch: there is no such batch.
        NotBlocked: it is not blocked.
        BatchBlocked: it is accepted and loaded, but a newer batch of its days is blocked and holds
            the audit files back.
    """
    with transaction(workspace.database.engine, "accept") as connection:
        accepted = ledger.accept(connection, batch_id, by, reason)
        tell_accepted(connection, accepted)
        facts = {"connection": accepted.connection, "entity": accepted.entity, "window": str(accepted.window)}
        facts |= {"batch": accepted.id, "by": masked_statement(by), "reason": masked_statement(reason)}
        append(workspace, connection, accepted.tenant, [Draft("accept", facts=facts)])
    export_chain(workspace, accepted.tenant)
    if accepted.kind == "replay":
        return finish(workspace, accepted).batch
    load(workspace, accepted)
    if accepted.kind == "lookup":
        _audit_single(workspace, accepted)
        return accepted
    audit_window(workspace, accepted.connection, accepted.entity, accepted.window)
    return accepted


def _audit_single(workspace: Workspace, batch: Batch) -> None:
    """Adds single records to the files of their own days, wherever the lookup is listed."""
    with transaction(workspace.database.engine, "accept.audit") as connection:
        audit_loaded(workspace, connection, batch.connection, batch.entity, [batch.id])
    export_chain(workspace, batch.tenant)
