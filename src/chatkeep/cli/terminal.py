"""What a terminal and a pipe are given: escaped text, local times, questions, and errors without a traceback."""

import asyncio
import io
import logging
import signal
import sys
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from datetime import datetime
from typing import Any, override

import typer
from pydantic import ValidationError
from rich.console import Console
from rich.text import Text

from chatkeep.errors import ChatkeepError
from chatkeep.validation import first_wrong


class Output(Console):
    """A console that leaves it to the caller what follows when its reader has gone."""

    @override
    def on_broken_pipe(self) -> None:
        raise BrokenPipeError


out = Output(highlight=False)
err = Output(stderr=True, highlight=False)

SURROGATES = "surrogates not allowed"
"""Python's reason not to encode an argument whose bytes it could not decode."""

INTERRUPTED = 128 + signal.SIGINT
"""The exit code after Ctrl-C."""

_VISIBLE = {code: chr(0x2400 + code) for code in range(32) if chr(code) not in "\n\t"} | {127: "␡"}
_VISIBLE |= dict.fromkeys(range(0x80, 0xA0), "\ufffd")  # some terminals execute these, too
_VISIBLE |= dict.fromkeys((*range(0x202A, 0x202F), *range(0x2066, 0x206A)), "\ufffd")  # these turn a line around
_ONE_LINE = {**_VISIBLE, ord("\n"): "␊", ord("\t"): "␉"}


def escaped(text: str, style: str = "") -> Text:
    """Return text whose control characters are shown as symbols, so that the terminal does not execute them."""
    return Text(text.translate(_VISIBLE), style=style)


def one_line(text: str) -> str:
    """Return what others wrote as a part of a line, which it cannot end: a second one would pass for chatkeep's."""
    return text.translate(_ONE_LINE)


def say(text: str | Text, style: str = "") -> None:
    """Print data on standard output: wrapped between words on a terminal, and as it is in a pipe."""
    shown = escaped(text, style) if isinstance(text, str) else text
    if out.is_terminal:
        out.print(shown)
    else:
        typer.echo(shown.plain)  # rich would expand tabs


def note(text: str, style: str = "") -> None:
    """Print on standard error what is no data, in one line."""
    err.print(Text(one_line(text), style=style), soft_wrap=True)


def show_all_characters() -> None:
    """Write `\\u4fdd` for a character that the encoding of standard output lacks, as Python does on standard error."""
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors in {"strict", "surrogateescape"}:
        sys.stdout.reconfigure(errors="backslashreplace")


def local_time(moment: datetime) -> str:
    """Return the local time, to the minute."""
    return f"{moment.astimezone():%Y-%m-%d %H:%M}"


def run[T](coroutine: Coroutine[Any, Any, T], loop_factory: Callable[[], asyncio.AbstractEventLoop] | None = None) -> T:
    """Run a coroutine. A ChatkeepError is printed as a message, with exit code 1."""
    with errors_as_sentences():
        return asyncio.run(coroutine, loop_factory=loop_factory)


@contextmanager
def errors_as_sentences() -> Iterator[None]:
    """Print an error that a user can cause as one message on standard error, and exit with code 1."""
    try:
        yield
    except ChatkeepError as error:
        reason: object = error
    except ValidationError as error:
        reason = first_wrong(error)
    except ModuleNotFoundError as error:
        if not error.name or error.name.startswith("chatkeep"):
            raise
        reason = f"this needs {error.name}: pip install 'chatkeep[server]'"
    except UnicodeEncodeError as error:
        if error.reason != SURROGATES:
            raise
        reason = "an argument has bytes that are not text; give it in UTF-8"
    else:
        return
    print_error(reason)
    raise typer.Exit(1)


def print_error(error: object) -> None:
    """Print a message on stderr, with no line breaks but its own."""
    err.print(escaped(f"Error: {error}", "red"), soft_wrap=True)


def refused(option: str, reason: str) -> typer.Exit:
    """Print why an option's value cannot be used, and return what exits with code 2."""
    print_error(f"{option}: {reason}")
    return typer.Exit(2)


def confirm(question: str) -> None:
    """Ask on standard error, and exit with code 1 unless the answer is yes."""
    try:
        agreed = typer.confirm(one_line(question), err=True)
    except typer.Abort:  # Ctrl-C, or no input
        err.print()
        agreed = False
    if not agreed:
        print_error("not confirmed, and nothing was changed; --yes leaves the question out")
        raise typer.Exit(1)


class Warnings(logging.Handler):
    """Prints what the library warns of, but not the failures of a database: who catches their errors prints them."""

    @override
    def emit(self, record: logging.LogRecord) -> None:
        try:
            if record.levelno < logging.ERROR or record.name not in DATABASES:
                note(f"Warning: {record.getMessage()}", "yellow")
        except Exception:  # noqa: BLE001 - as every handler: nothing is raised to the code that logs
            self.handleError(record)


DATABASES = {f"chatkeep.stores.{name}.database" for name in ("sqlite", "postgres", "mongo")}
"""The loggers of what is logged before it is raised."""

WARNINGS = Warnings(logging.WARNING)


def print_warnings() -> None:
    """Print the library's warnings from now on, unless a command sends its log elsewhere. Idempotent."""
    logging.getLogger("chatkeep").addHandler(WARNINGS)
