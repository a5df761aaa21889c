"""`chatkeep serve`: the server."""

import errno
import os
import socket
from typing import Annotated

import typer

from chatkeep.cli.options import DatabaseUrl, EmbedderName, load_settings
from chatkeep.cli.terminal import out, run
from chatkeep.settings import ProviderName, Settings
from chatkeep.store import open_store
from chatkeep.urls import without_secrets


def serve(
    database_url: DatabaseUrl = None,
    host: Annotated[str | None, typer.Option(help="Address to listen on. Default: 127.0.0.1.")] = None,
    port: Annotated[
        int | None, typer.Option(min=0, max=65535, help="Port to listen on; 0: any free port. Default: 8765.")
    ] = None,
    workers: Annotated[int | None, typer.Option(min=1, max=256, help="Number of server processes. Default: 1.")] = None,
    provider: Annotated[ProviderName | None, typer.Option(help="What answers questions. Default: nothing.")] = None,
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
        "embedder": embedder,
        "drain": drain,
    }
    settings = load_settings().model_copy(update={name: value for name, value in given.items() if value is not None})
    _check(settings)
    # Imported here: it takes a second, which the other commands do not need.
    from chatkeep.api.server import Server, Workers, uvicorn_config

    config = uvicorn_config(settings)
    with _listen(settings, config.backlog) as listener:  # from here on clients can connect, and wait
        run(_prepare(settings))
        _print_greeting(settings, f"http://{_host_in_url(settings.host)}:{listener.getsockname()[1]}")
        if settings.workers == 1:
            run(Server(settings).serve(sockets=[listener]), config.get_loop_factory())
        else:
            Workers(settings, [listener]).run()


def _check(settings: Settings) -> None:
    if settings.auth == "none" and not settings.listens_on_loopback:
        raise typer.BadParameter(
            f"other machines can connect to {settings.host}, and without authentication every client can read and"
            " delete everything. Set CHATKEEP_AUTH=jwt, or use 127.0.0.1, ::1 or localhost.",
            param_hint="--host",
        )
    if settings.workers > 1 and settings.store_url.startswith("memory:"):
        raise typer.BadParameter(
            "memory:// is the memory of one process; several need a shared database", param_hint="--workers"
        )


def _listen(settings: Settings, backlog: int) -> socket.socket:
    family, dual_stack = socket.AF_INET, False
    if ":" in settings.host:
        family, dual_stack = socket.AF_INET6, socket.has_dualstack_ipv6()  # `::` includes all IPv4 addresses
    try:
        address = (settings.host, settings.port)
        return socket.create_server(address, family=family, backlog=backlog, dualstack_ipv6=dual_stack)
    except OSError as error:
        raise _cannot_listen(settings, error) from None


def _cannot_listen(settings: Settings, error: OSError) -> typer.BadParameter:
    if error.errno == errno.EADDRINUSE:
        return typer.BadParameter(
            f"port {settings.port} of {settings.host} is in use. Stop the other server, or use another port;"
            " 0: any free port.",
            param_hint="--port",
        )
    if error.errno == errno.EACCES:
        return typer.BadParameter(
            f"this user may not listen on port {settings.port}; use a port above 1023",
            param_hint="--port",
        )
    reason = os.strerror(error.errno) if error.errno and error.errno > 0 else "no such address"
    return typer.BadParameter(f"this machine cannot listen on {settings.host}: {reason}", param_hint="--host")


async def _prepare(settings: Settings) -> None:
    """Migrate the schema once before the workers open the store, and report invalid settings before they start."""
    from chatkeep.api.rate_limit import rate_limiters
    from chatkeep.api.server import embedders_of

    rate_limiters(settings)
    embedders_of(settings)
    async with open_store(settings.store_url):
        pass


def _host_in_url(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def _print_greeting(settings: Settings, url: str) -> None:
    lines = (
        f"chatkeep serves {without_secrets(settings.store_url)}",
        f"  {url}/api/docs",
        "Try:",
        f"  curl '{url}/api/conversations?limit=3'",
        f"  curl {url}/api/conversations -H 'Content-Type: application/json' -d '{{\"title\": \"My first\"}}'",
    )
    for line in lines:
        out.print(line, soft_wrap=True, markup=False)
