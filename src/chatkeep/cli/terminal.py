"""Output on a terminal: escaped text, local times, errors without a traceback."""

import asyncio
from collections.abc import Callable, Coroutine
from datetime import datetime
from typing import Any

import typer
from rich.console import Console
from rich.text import Text

from chatkeep.errors import ChatkeepError

out = Console(highlight=False)
err = Console(stderr=True, highlight=False)

_VISIBLE = {code: chr(0x2400 + code) for code in range(32) if chr(code) not in "\n\t"} | {127: "␡"}


def escaped(text: str, style: str = "") -> Text:
    """Return text whose control characters are shown as symbols, so that the terminal does not execute them."""
    return Text(text.translate(_VISIBLE), style=style)


def local_time(moment: datetime) -> str:
    """Return the local time, to the minute."""
    return f"{moment.astimezone():%Y-%m-%d %H:%M}"


def run[T](coroutine: Coroutine[Any, Any, T], loop_factory: Callable[[], asyncio.AbstractEventLoop] | None = None) -> T:
    """Run a coroutine. A ChatkeepError is printed as a message, with exit code 1."""
    try:
        return asyncio.run(coroutine, loop_factory=loop_factory)
    except ChatkeepError as error:
        print_error(error)
        raise typer.Exit(1) from None


def print_error(error: object) -> None:
    """Print a message on stderr, without markup and line breaks of its own."""
    err.print(f"Error: {error}", style="red", markup=False, soft_wrap=True)
