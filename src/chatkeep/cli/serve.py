"""`chatkeep serve`: the server, from a terminal."""

import errno
import os
import socket
from typing import Annotated

import typer

from chatkeep.cli.options import DatabaseUrl, given_settings
from chatkeep.cli.terminal import out, run
from chatkeep.settings import Settings
from chatkeep.store import open_store, without_password


def serve(
    database_url: DatabaseUrl = None,
    host: Annotated[str | None, typer.Option(help="Address to listen on. [127.0.0.1]", show_default=False)] = None,
    port: Annotated[int | None, typer.Option(min=0, max=65535, help="Port; 0 takes a free one. [8765]")] = None,
    workers: Annotated[int | None, typer.Option(min=1, max=256, help="Processes that serve. [1]")] = None,
) -> None:
    """Serve the REST API. Ctrl-C finishes what is under way and stops.

    Without CHATKEEP_AUTH=jwt there is one user, local, and the server listens on this machine only.
    """
    given = {"database_url": database_url, "host": host, "port": port, "workers": workers}
    settings = given_settings().model_copy(update={name: value for name, value in given.items() if value is not None})
    _refuse_what_cannot_be_served(settings)
    # Here, because it is a second of start-up that the other commands need not take.
    from chatkeep.api.server import Server, Workers, uvicorn_config

    config = uvicorn_config(settings)
    with _listening(settings, config.backlog) as listening:  # who connects from here on is served, if not at once
        run(_prepare(settings))
        _say_where(settings, f"http://{_in_url(settings.host)}:{listening.getsockname()[1]}")
        if settings.workers == 1:
            run(Server(settings).serve(sockets=[listening]), config.get_loop_factory())
        else:
            Workers(settings, [listening]).run()


def _refuse_what_cannot_be_served(settings: Settings) -> None:
    if settings.auth == "none" and not settings.listens_on_loopback:
        raise typer.BadParameter(
            f"{settings.host} can be reached from other machines, and without authentication whoever reaches the"
            " server reads and deletes everything. Set CHATKEEP_AUTH=jwt, or use 127.0.0.1, ::1 or localhost.",
            param_hint="--host",
        )
    if settings.workers > 1 and settings.store_url.startswith("memory:"):
        raise typer.BadParameter(
            "memory:// is the memory of one process; several need a database that they share", param_hint="--workers"
        )


def _listening(settings: Settings, backlog: int) -> socket.socket:
    family, both = socket.AF_INET, False
    if ":" in settings.host:
        family, both = socket.AF_INET6, socket.has_dualstack_ipv6()  # `::` means every address, those of IPv4, too
    try:
        return socket.create_server((settings.host, settings.port), family=family, backlog=backlog, dualstack_ipv6=both)
    except OSError as error:
        raise _cannot_listen(settings, error) from None


def _cannot_listen(settings: Settings, error: OSError) -> typer.BadParameter:
    if error.errno == errno.EADDRINUSE:
        return typer.BadParameter(
            f"port {settings.port} of {settings.host} is in use. Stop what listens there, or take another port; 0 takes"
            " a free one.",
            param_hint="--port",
        )
    if error.errno == errno.EACCES:
        return typer.BadParameter(
            f"the system does not let this user listen on port {settings.port}; take one above 1023",
            param_hint="--port",
        )
    reason = os.strerror(error.errno) if error.errno and error.errno > 0 else "no such address"
    return typer.BadParameter(f"this machine cannot listen on {settings.host}: {reason}", param_hint="--host")


async def _prepare(settings: Settings) -> None:
    """Bring the schema up to date once, before several processes open the store, and say early what is wrong."""
    from chatkeep.api.rate_limit import rate_limiters

    rate_limiters(settings)
    async with open_store(settings.store_url):
        pass


def _in_url(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def _say_where(settings: Settings, url: str) -> None:
    lines = (
        f"chatkeep serves {without_password(settings.store_url)}",
        f"  {url}/api/docs",
        "Try:",
        f"  curl '{url}/api/conversations?limit=3'",
        f"  curl {url}/api/conversations -H 'Content-Type: application/json' -d '{{\"title\": \"My first\"}}'",
    )
    for line in lines:
        out.print(line, soft_wrap=True, markup=False)
