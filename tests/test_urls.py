"""URLs of stores: which are understood, and that nothing shows what is secret in them."""

import asyncio
import os
import warnings
from collections.abc import Sequence
from contextlib import suppress

import pytest
from typer.testing import CliRunner

from chatkeep import InvalidInput, open_store
from chatkeep.cli.app import app
from chatkeep.store import ADAPTERS
from chatkeep.urls import FILE_SCHEMES, SERVER_SCHEMES, split_url, without_secrets
from servers.postgres import databases, with_query

SECRET = "zq7"
"""Stands in every password below, and may stand in nothing that is shown."""

NOT_UNDERSTOOD = [
    "postgresql://ada:zq7/zq7@127.0.0.1:1/chat",
    "postgresql://ada:12/zq7@127.0.0.1:1/chat",
    "postgresql://ada:zq7?zq7@127.0.0.1:1/chat",
    "postgresql://ada:12?zq7@127.0.0.1:1/chat",
    "postgresql://ada:zq7#zq7@127.0.0.1:1/chat",
    "postgresql://ada:12#zq7@127.0.0.1:1/chat",
    "postgresql://ada:zq7@zq7@127.0.0.1:1/chat",
    "postgresql://ada:x@zq7/zq7@127.0.0.1:1/chat",
    "postgresql://ada:[zq7@127.0.0.1:1/chat",
    "postgresql://ada:zq7]@127.0.0.1:1/chat",
    "postgresql://ada:zq7\u2100@127.0.0.1:1/chat",
    "postgresql://ada:zq7@127.0.0.1:zq7/chat",
    "postgresql://ada:zq7@localhost:99999/chat",
    "postgresql://ada:zq7@127.0.0.1:1,[::1]:65536/chat",
    "mongodb://ada:zq7@127.0.0.1:99999/chat",
    "sqlite:///zq7\udcff.db",
    "postgresql:/ada:zq7@127.0.0.1:1/chat",
    "postgresql:ada:zq7@127.0.0.1:1/chat",
    "postgresql:///ada:zq7@127.0.0.1:1/chat",
    "postgresq://ada:zq7@127.0.0.1:1/chat",
    "postgresql+asyncpg://ada:zq7@127.0.0.1:1/chat",
    "mysql://ada:zq7@127.0.0.1:1/chat",
    "ada:zq7@127.0.0.1:1/chat",
    "//ada:zq7@127.0.0.1:1/chat",
    "zq7://127.0.0.1/chat",
    "zq7",
    " zq7",
    "mongodb://ada:zq7/zq7@127.0.0.1:1/chat",
    "mongodb://ada:12/zq7@127.0.0.1:1/chat",
    "mongodb://ada:zq7@zq7@127.0.0.1:1/chat",
    "mongodb://ada:zq7:zq7/@127.0.0.1:1/chat",
    "mongodb+srv://ada:zq7/zq7@host.invalid/chat",
    "mongo://ada:zq7@127.0.0.1:1/chat",
    "sqlite://ada:zq7@127.0.0.1:1/chat",
    "memory://ada:zq7@127.0.0.1:1/chat",
    "memory:///zq7",
]
UNUSABLE = [
    "postgresql://ada:zq7@127.0.0.1:1/chat",
    "postgresql://ada@127.0.0.1:1/chat?password=zq7",
    "postgresql://127.0.0.1:1/chat?user=ada&password=zq7&sslmode=zq7",
    "postgresql://127.0.0.1:1/chat?password=zq7@zq7&port=zq7",
    "postgresql://127.0.0.1:1/chat?host=127.0.0.1&port=zq7",
    "postgresql://127.0.0.1:1/chat?sslpassword=zq7&sslmode=require&sslkey=/nowhere",
    "postgresql://ada:zq7@127.0.0.1:1/chat?search=zq7",
    "mongodb://ada:zq7@127.0.0.1:1/chat?serverSelectionTimeoutMS=50",
    "mongodb://ada:zq7@127.0.0.1:1?serverSelectionTimeoutMS=50",
    "mongodb://ada:zq7%zz@127.0.0.1:1/chat",
    "mongodb://127.0.0.1:1/chat?serverSelectionTimeoutMS=50&connectTimeoutMS=zq7&tlsCertificateKeyFilePassword=zq7",
    "mongodb://127.0.0.1:1/chat?authMechanism=zq7&serverSelectionTimeoutMS=50",
    "mongodb://127.0.0.1:1/chat?authMechanism=MONGODB-AWS&authMechanismProperties=AWS_SESSION_TOKEN:zq7,zq7&w=zq7",
    "mongodb://127.0.0.1:1/chat?readPreference=zq7&tlsCAFile=/zq7&tls=zq7",
    "mongodb+srv://ada:zq7@127.0.0.1/chat",
    "sqlite:///nowhere/chat.db?search=zq7",
]
COMMANDS = [
    ["serve", "--port", "0"],
    ["db", "status"],
    ["db", "upgrade"],
    ["db", "downgrade", "base"],
    ["list"],
    ["erase", "ada"],
    ["keys", "list"],
    ["export"],
]


@pytest.mark.parametrize("url", NOT_UNDERSTOOD)
async def test_urls_that_are_not_understood(url: str) -> None:
    """The error says what is wrong and has nothing of the URL, and neither has what caused it."""
    with pytest.raises(InvalidInput) as caught:
        await open_store(url)
    assert SECRET not in f"{caught.value!r} {caught.value} {caught.value.__dict__}"
    assert caught.value.__context__ is None or caught.value.__suppress_context__
    assert SECRET not in without_secrets(url) or url == "memory:///zq7"  # a path, which is no secret


@pytest.mark.parametrize("url", [*NOT_UNDERSTOOD, *UNUSABLE])
@pytest.mark.parametrize("given_by", ["option", "environment"])
def test_no_command_shows_a_secret(url: str, given_by: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """No command does that cannot use its URL, nor a traceback, a warning of a driver or a question."""
    for name in [name for name in os.environ if name.startswith("CHATKEEP_")]:
        monkeypatch.delenv(name)
    shown = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for command in COMMANDS if url in NOT_UNDERSTOOD else COMMANDS[:2]:
            shown.append(shown_by([*command, "--database-url", url], {}) if given_by == "option" else
                         shown_by(command, {"CHATKEEP_DATABASE_URL": url}))  # fmt: skip
    text = "\n".join([*shown, *(str(each.message) for each in caught)]).replace("(memory:///zq7)", "")
    if url == "memory:///zq7":
        text = text.replace("memory:///zq7", "")  # in a question: a path, which is no secret
    assert SECRET not in text
    assert "Traceback" not in text


async def test_commands_that_succeed_show_no_secret() -> None:
    """What is shown of a database in use is where it is; values in the query are not."""
    url = with_query(databases().clean(), "password=zq7&application_name=zq7")
    for command in (["db", "upgrade"], ["db", "status"], ["db", "downgrade", "base"]):
        done = await asyncio.to_thread(CliRunner().invoke, app, [*command, "--database-url", url])
        assert "?***" in done.output.replace("\n", "")
        assert SECRET not in done.output


def shown_by(arguments: Sequence[str], environment: dict[str, str]) -> str:
    """What a command that fails writes, and the exception that it ends with."""
    done = CliRunner().invoke(app, list(arguments), env={"COLUMNS": "500", "NO_COLOR": "1", **environment})
    assert done.exit_code != 0
    return f"{done.output}\n{done.exception!r}"


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("sqlite:////var/lib/chat.db", "sqlite:////var/lib/chat.db"),
        ("sqlite:///a@b:c.db?search=off", "sqlite:///a@b:c.db?***"),
        ("memory://", "memory://"),
        ("postgresql://ada@db.example/chat", "postgresql://ada@db.example/chat"),
        ("postgresql://ada:zq7@db.example:5432/chat", "postgresql://ada:***@db.example:5432/chat"),
        ("postgres://ada:z%2Fq%407@[::1]:5432/chat?sslmode=require", "postgres://ada:***@[::1]:5432/chat?***"),
        ("postgresql://ada:zq7@one:1,two:2/chat", "postgresql://ada:***@one:1,two:2/chat"),
        ("postgresql://ada:@/chat?host=/run/zq7", "postgresql://ada:***@/chat?***"),
        ("postgresql:///chat?user=ada@zq7&password=zq7", "postgresql:///chat?***"),
        ("postgresql://%2Frun%2Fpostgresql/chat", "postgresql://%2Frun%2Fpostgresql/chat"),
        ("postgresql://ada:zq7%40%C3%A9@db/caf%C3%A9", "postgresql://ada:***@db/caf%C3%A9"),
        ("postgresql://:zq7@db/chat", "postgresql://:***@db/chat"),
        ("mongodb://a:zq7@one:1,two:2,[::1]:3/chat?tls=true", "mongodb://a:***@one:1,two:2,[::1]:3/chat?***"),
        ("mongodb+srv://a:zq7@cluster.example/chat", "mongodb+srv://a:***@cluster.example/chat"),
        ("mongodb://%2Ftmp%2Fmongodb-27017.sock/chat", "mongodb://%2Ftmp%2Fmongodb-27017.sock/chat"),
    ],
)
def test_what_is_shown(url: str, shown: str) -> None:
    """Of a URL that is understood everything but the password and the query is shown."""
    assert split_url(url).scheme == url.partition(":")[0]
    assert without_secrets(url) == shown


def test_the_schemes_are_those_of_the_adapters() -> None:
    """Each scheme that is understood has a store."""
    assert {*FILE_SCHEMES, *SERVER_SCHEMES} == set(ADAPTERS)


async def test_logs_hold_no_secret(caplog: pytest.LogCaptureFixture) -> None:
    """Drivers and chatkeep log no password of a database that cannot be reached."""
    caplog.set_level("DEBUG")
    for url in UNUSABLE:
        with suppress(Exception), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            await open_store(url)
    assert SECRET not in caplog.text
