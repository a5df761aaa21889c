"""How the command line speaks: to a terminal, in the user's time, and of errors without a traceback."""

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


def plain(text: str, style: str = "") -> Text:
    """Text for the terminal: control characters are shown, not obeyed."""
    return Text(text.translate(_VISIBLE), style=style)


def when(moment: datetime) -> str:
    """The local time, to the minute."""
    return f"{moment.astimezone():%Y-%m-%d %H:%M}"


def run[T](work: Coroutine[Any, Any, T], loop_factory: Callable[[], asyncio.AbstractEventLoop] | None = None) -> T:
    """Run `work`; an error that chatkeep raises on purpose is a sentence for people, not a traceback."""
    try:
        return asyncio.run(work, loop_factory=loop_factory)
    except ChatkeepError as error:
        err.print(f"Error: {error}", style="red", markup=False, soft_wrap=True)
        raise typer.Exit(1) from None
