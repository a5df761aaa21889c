"""`chatkeep providers`: which models answer."""

import typer

from chatkeep.cli.options import DatabaseUrl, open_existing, store_url
from chatkeep.cli.tables import AsJson, print_json, print_table
from chatkeep.cli.terminal import run
from chatkeep.settings import provider_key

app = typer.Typer(no_args_is_help=True, help="LLM providers: which models answer.")


@app.callback()
def _group() -> None:
    """Name the group: Typer runs the only command of one without its name."""


@app.command("list")
def list_providers(database_url: DatabaseUrl = None, as_json: AsJson = False) -> None:
    """List the providers, where they are, and the environment variables of their keys, without the keys."""
    run(_list_providers(store_url(database_url), as_json=as_json))


async def _list_providers(url: str, *, as_json: bool) -> None:
    async with open_existing(url) as store:
        found = await store.providers.list_providers()
    if as_json:
        print_json(*found)
        return
    rows = [
        (
            str(each.id),
            "default" if each.is_default else None,
            each.provider_name,
            each.model_name,
            _key(each.api_config.api_key_env),
            each.api_config.base_url,
        )
        for each in found
    ]
    print_table(("ID", "DEFAULT", "PROVIDER", "MODEL", "KEY", "URL"), rows)


def _key(variable: str | None) -> str | None:
    """The variable of a key, and whether this process has it."""
    if variable is None:
        return None
    return variable if provider_key(variable) is not None else f"{variable} (not set)"
