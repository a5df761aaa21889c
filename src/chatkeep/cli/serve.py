"""`chatkeep serve`: the server."""

import errno
import json
import os
import socket
from shlex import quote
from typing import Annotated, NamedTuple
from uuid import uuid5

import typer

from chatkeep.cli.options import DatabaseUrl, EmbedderName, check_file, load_settings
from chatkeep.cli.terminal import escaped, out, refused, run
from chatkeep.projects import Project
from chatkeep.providers import LlmProvider
from chatkeep.settings import LOCAL_OWNER, ProviderName, Settings
from chatkeep.store import Store, open_store
from chatkeep.urls import without_secrets


def serve(
    database_url: DatabaseUrl = None,
    host: Annotated[str | None, typer.Option(help="Address to listen on. Default: 127.0.0.1.")] = None,
    port: Annotated[
        int | None, typer.Option(min=0, max=65535, help="Port to listen on; 0: any free port. Default: 8765.")
    ] = None,
    workers: Annotated[int | None, typer.Option(min=1, max=256, help="Number of server processes. Default: 1.")] = None,
    provider: Annotated[
        ProviderName | None, typer.Option(help="What answers questions. Default: configured, those of the database.")
    ] = None,
    upstream: Annotated[
        str | None,
        typer.Option(help="URL of a model server (llama.cpp, Ollama, vLLM) that answers from now on, as http://…/v1."),
    ] = None,
    upstream_model: Annotated[
        str | None, typer.Option(help="Name of its model. Default: the first that it lists.")
    ] = None,
    embedder: EmbedderName = None,
    drain: Annotated[
        float | None, typer.Option(min=0, help="Seconds in which answers may be finished at the end. Default: 20.")
    ] = None,
) -> None:
    """Serve the REST API. Ctrl-C finishes the current requests and stops.

    Without CHATKEEP_AUTH=jwt there is one owner, local, and only clients on this machine can connect.
    """
    given = {
        "database_url": database_url,
        "host": host,
        "port": port,
        "workers": workers,
        "provider": provider,
        "upstream": upstream,
        "upstream_model": upstream_model,
        "embedder": embedder,
        "drain": drain,
    }
    settings = load_settings().model_copy(update={name: value for name, value in given.items() if value is not None})
    _check(settings)
    # Imported here: it takes a second, which the other commands do not need.
    from chatkeep.api.server import Server, Workers, uvicorn_config

    config = uvicorn_config(settings)
    with _listen(settings, config.backlog) as listener:  # from here on clients can connect, and wait
        prepared = run(_prepare(settings))
        _print_greeting(settings, f"http://{_host_in_url(settings.host)}:{listener.getsockname()[1]}", prepared)
        if settings.workers == 1:
            run(Server(settings).serve(sockets=[listener]), config.get_loop_factory())
        else:
            Workers(settings, [listener]).run()


def _check(settings: Settings) -> None:
    check_file(settings.store_url, makes=True)
    if settings.auth == "none" and not settings.listens_on_loopback:
        raise refused(
            "--host",
            f"other machines can connect to {settings.host}, and without authentication every client can read and"
            " delete everything. Set CHATKEEP_AUTH=jwt, or use 127.0.0.1, ::1 or localhost.",
        )
    if settings.workers > 1 and settings.store_url.startswith("memory:"):
        raise refused("--workers", "memory:// is the memory of one process; several need a shared database")
    if settings.upstream:
        _check_upstream(settings)


def _check_upstream(settings: Settings) -> None:
    if settings.provider != "configured":
        raise refused(
            "--upstream", "a provider of the database would not answer; leave out --provider and CHATKEEP_PROVIDER"
        )
    if settings.store_url.startswith("memory:"):
        raise refused("--upstream", "memory:// keeps no providers; use a database")


def _listen(settings: Settings, backlog: int) -> socket.socket:
    family, dual_stack = socket.AF_INET, False
    if ":" in settings.host:
        family, dual_stack = socket.AF_INET6, socket.has_dualstack_ipv6()  # `::` includes all IPv4 addresses
    try:
        address = (settings.host, settings.port)
        return socket.create_server(address, family=family, backlog=backlog, dualstack_ipv6=dual_stack)
    except OSError as error:
        raise _cannot_listen(settings, error) from None


def _cannot_listen(settings: Settings, error: OSError) -> typer.Exit:
    if error.errno == errno.EADDRINUSE:
        return refused(
            "--port",
            f"port {settings.port} of {settings.host} is in use. Stop the other server, or use another port;"
            " 0: any free port.",
        )
    if error.errno == errno.EACCES:
        return refused("--port", f"this user may not listen on port {settings.port}; use a port above 1023")
    reason = os.strerror(error.errno) if error.errno and error.errno > 0 else "no such address"
    return refused("--host", f"this machine cannot listen on {settings.host}: {reason}")


class Prepared(NamedTuple):
    """What a server is ready with."""

    upstream: LlmProvider | None
    """The provider of --upstream."""
    project: Project | None
    """One whose documents the local owner may ask about."""


async def _prepare(settings: Settings) -> Prepared:
    """Migrate the schema once before the workers open the store, and report invalid settings before they start.

    The provider of --upstream is made here.
    """
    from chatkeep.api.providing import tools_of
    from chatkeep.api.rate_limit import rate_limiters
    from chatkeep.api.server import embedders_of
    from chatkeep.cli.upstream import use_upstream

    rate_limiters(settings)
    embedders_of(settings)
    tools_of(settings)
    async with open_store(settings.store_url) as store:
        upstream = await use_upstream(store.providers, settings.upstream, settings) if settings.upstream else None
        return Prepared(upstream, None if settings.auth == "jwt" else await _with_documents(store))


async def _with_documents(store: Store) -> Project | None:
    """The newest project of the local owner that has documents."""
    page = await store.projects.list_projects(LOCAL_OWNER, limit=20)
    return next((project for project in page.items if project.documents), None)


def _host_in_url(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def _print_greeting(settings: Settings, url: str, prepared: Prepared) -> None:
    lines = [f"chatkeep serves {without_secrets(settings.store_url)}", f"  {url}/api/docs", "Try:"]
    if settings.auth == "jwt":
        lines += _with_key(settings, url)
    else:
        lines += [
            f"  curl '{url}/api/conversations?limit=3'",
            f"  {_post(f'{url}/api/conversations', title='My first')}",
        ]
    if prepared.project is not None and settings.provider == "configured":
        lines += _questions(url, prepared.project)
    for line in lines:
        out.print(line, soft_wrap=True, markup=False)
    if prepared.upstream is not None:
        told = f"Questions are answered by {prepared.upstream.model_name} at {prepared.upstream.api_config.base_url}"
        out.print(escaped(told), soft_wrap=True)


def _with_key(settings: Settings, url: str) -> list[str]:
    """How to get a first API key, and use it."""
    place = settings.database_url
    database = "" if place is None else f" --database-url {_to_be_pasted(place)}"
    return [
        f"  KEY=$(chatkeep keys create {LOCAL_OWNER}{database})    # an API key, for any owner, in place of a token",
        f"  curl '{url}/api/conversations?limit=3' -H \"Authorization: Bearer $KEY\"",
    ]


def _to_be_pasted(database_url: str) -> str:
    """A database's URL for a shell. That of a server may have a secret: the shell has to know it."""
    is_file = database_url.startswith("sqlite:")
    return quote(database_url.partition("?")[0]) if is_file else '"$CHATKEEP_DATABASE_URL"'


def _questions(url: str, project: Project) -> list[str]:
    """How to ask about the documents of a project, in a conversation that is the same every time."""
    talk, about = str(uuid5(project.id, "greeting")), str(project.id)
    asking = f"{url}/api/conversations/{talk}/messages"
    return [
        "Ask about the documents:",
        f"  {_post(f'{url}/api/conversations', id=talk, project_id=about)}",
        f"  {_post(asking, content='How do I back up a database that is in use?')}",
    ]


def _post(url: str, **body: str) -> str:
    """The command that posts JSON."""
    return f"curl {url} -H 'Content-Type: application/json' -d '{json.dumps(body)}'"
