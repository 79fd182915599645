"""`bridge audit`: verify the audit files and their chain, show its heads, change the signing key."""

import re
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bridge_pipeline.commands.answers import Json, answer, examples, opened, printable, table

if TYPE_CHECKING:
    from rich.console import Console

    from bridge_pipeline.steps.chainfile import Removal
    from bridge_pipeline.steps.verify import ChainResult, Verification

app = typer.Typer(help="Verify the audit files and the signed chain that lists them.", no_args_is_help=True)
_SHA256 = re.compile(r"[0-9a-f]{64}")
_FINGERPRINT = re.compile(r"[0-9a-f]{16,64}")
_SHOWN = 50


@app.command(
    epilog=examples("`bridge audit verify`", "`bridge audit verify /media/copy/acme --head 9f86d081… --json`")
)
def verify(
    folder: Annotated[
        Path | None,
        typer.Argument(
            metavar="[FOLDER]", help="The audit folder or that of one tenant; by default this home's."
        ),
    ] = None,
    head: Annotated[
        list[str] | None,
        typer.Option(metavar="SHA256", help="A head that the chain must contain; may be repeated."),
    ] = None,
    key: Annotated[
        str | None,
        typer.Option(metavar="FINGERPRINT", help="A key that must have signed; 16 digits or more of it."),
    ] = None,
    json_output: Json = False,
) -> None:
    """Say whether every audit file, manifest, certificate and entry of the chain is as it was written.

    Needs no network and no database. Names the first thing that was altered, removed, inserted,
    reordered or cut off at the end, and ends with 1 if there is any. Only a head that is known from
    outside the folder shows a cut at its end: this home's own is used for this home's folder, `--head`
    serves a copy.
    """
    from bridge_pipeline import settings
    from bridge_pipeline.naming import Home
    from bridge_pipeline.steps.heads import known_heads
    from bridge_pipeline.steps.verify import verify_folder

    given = [_hexadecimal(each, _SHA256, "--head", "64") for each in head or []]
    fingerprint = _hexadecimal(key, _FINGERPRINT, "--key", "16 to 64") if key is not None else None
    configuration = settings.load()
    home = Home(configuration.home)
    place = (folder or home.audit).resolve()
    own = place == home.audit.resolve()
    heads = known_heads(configuration, home) if own or place.parent == home.audit.resolve() else {}
    found = verify_folder(place, heads, given, fingerprint, all_tenants=own or None)
    answer(_document(found), json_output, lambda console: _show(found, console))
    if found.findings:
        raise typer.Exit(1)


def _hexadecimal(text: str, pattern: re.Pattern[str], option: str, digits: str) -> str:
    if not pattern.fullmatch(text.lower()):
        raise typer.BadParameter(f"{option} takes {digits} hexadecimal digits, not {text!r}")
    return text.lower()


def _document(found: "Verification") -> dict[str, Any]:
    findings = found.findings
    return {
        "folder": str(found.folder),
        "whole": not findings,
        "first": asdict(findings[0]) if findings else None,
        "found": len(findings),
        "counts": dict(Counter(finding.what for finding in findings)),
        "head_checked": bool(found.chains) and all(chain.head_checked for chain in found.chains),
        "chains": [asdict(chain) for chain in found.chains],
        "findings": [asdict(finding) for finding in findings],
    }


def _show(found: "Verification", console: "Console") -> None:
    for chain in found.chains:
        console.print(printable(_summary(chain)))
        console.print(printable(f"  head {_checked(chain)}"))
        for removal in chain.removals:
            console.print(printable(f"  {_removed(removal)}"))
    findings = found.findings
    if not findings:
        console.print("everything is as it was written" if found.chains else "nothing was audited yet")
        return
    first = findings[0]
    console.print(printable(f"FIRST {first.what}: {first.where}: {first.why}"), style="bold red")
    rows = [[finding.what, finding.where, finding.why] for finding in findings[:_SHOWN]]
    console.print(table(["what", "where", "how it shows"], rows))
    counts = Counter(finding.what for finding in findings)
    total = ", ".join(f"{count} {what}" for what, count in counts.items())
    more = f"; {_SHOWN} are shown, --json lists all" if len(findings) > _SHOWN else ""
    console.print(f"{len(findings)} found: {total}{more}")


def _summary(chain: "ChainResult") -> str:
    keys = ", ".join(key[:16] for key in chain.keys) or "none"
    return f"{chain.tenant or chain.folder}: {chain.entries} entries, {chain.files} files, keys {keys}"


def _removed(removal: "Removal") -> str:
    said = " ".join(f"{word} {removal.facts[word]!r}" for word in ("by", "reason") if word in removal.facts)
    return f"{removal.kind} of {', '.join(removal.paths)} at {removal.at} (entry {removal.sequence}) {said}"


def _checked(chain: "ChainResult") -> str:
    at = f"entry {chain.sequence}, {chain.sha256}"
    if chain.head_checked:
        return f"{at}, checked against {' and '.join(chain.head_checked)}"
    return f"not checked: {at}. What may have been cut off behind it does not show; see --head"


@app.command("head", epilog=examples("`bridge audit head`", "`bridge audit head --json`"))
def show_heads(json_output: Json = False) -> None:
    """Show the head of every tenant's chain: what to note down outside, and give to `verify --head`."""
    from bridge_pipeline.steps.chain import heads

    with opened().database.engine.connect() as connection:
        found = heads(connection)
    columns = ["tenant", "entry", "sha256", "key", "at"]
    rows = [[each.tenant, each.sequence, each.sha256, each.key, f"{each.at:%F %T}"] for each in found]
    answer([asdict(each) for each in found], json_output, lambda console: console.print(table(columns, rows)))


@app.command("rotate-key", epilog=examples("`bridge audit rotate-key`"))
def rotate_key(json_output: Json = False) -> None:
    """Sign with a new key from now on. The old one signs an entry of every chain that names the new.

    The replaced private key is removed from the home; what it signed can still be verified.
    """
    from bridge_pipeline.steps import chain

    rotation = chain.rotate_key(opened())
    chains = ", ".join(rotation.tenants) or "none yet"
    text = f"from now on the audit chains are signed with the key {rotation.key} (tenants: {chains})"
    answer(asdict(rotation), json_output, lambda console: console.print(text))
