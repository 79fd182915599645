"""`bridge secrets`: the key that seals credentials."""

from dataclasses import asdict

import typer

from bridge_pipeline.commands.answers import Json, answer, examples, opened

app = typer.Typer(help="Look after the key that seals credentials.", no_args_is_help=True)


@app.callback()
def _group() -> None:
    """Keeps `rotate` a command of its own, though it is the only one."""


@app.command(epilog=examples("`bridge secrets rotate`"))
def rotate(json_output: Json = False) -> None:
    """Seal all credentials with a new key.

    The former key stays beside it, in case something that was under way still needs it. Where the
    key comes from the environment, set the new one there first, and the old one in
    BRIDGE_FORMER_SECRET_KEYS.
    """
    from bridge_pipeline.steps.rotate import rotate as rotate_key

    done = rotate_key(opened())
    text = f"{done.resealed} credentials are sealed with the key {done.key}; before it was {done.former_key}"
    answer(asdict(done), json_output, lambda console: console.print(text))
