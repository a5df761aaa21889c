"""`chatkeep providers`: which models answer."""

import typer

from chatkeep.cli.options import DatabaseUrl, open_existing, store_url
from chatkeep.cli.terminal import escaped, out, run
from chatkeep.settings import provider_key

app = typer.Typer(no_args_is_help=True, help="LLM providers: which models answer.")


@app.callback()
def _group() -> None:
    """Name the group: Typer runs the only command of one without its name."""


@app.command("list")
def list_providers(database_url: DatabaseUrl = None) -> None:
    """List the providers, where they are, and the environment variables of their keys, without the keys."""
    run(_list_providers(store_url(database_url)))


async def _list_providers(url: str) -> None:
    async with open_existing(url) as store:
        found = await store.providers.list_providers()
    for each in found:
        config, is_default = each.api_config, "default" if each.is_default else None
        told = (
            str(each.id),
            each.provider_name,
            each.model_name,
            is_default,
            config.base_url,
            _key(config.api_key_env),
        )
        out.print(escaped("  ".join(filter(None, told))), soft_wrap=True)


def _key(variable: str | None) -> str | None:
    """The variable of a key, and whether this process has it."""
    if variable is None:
        return None
    return variable if provider_key(variable) is not None else f"{variable} (not set)"
