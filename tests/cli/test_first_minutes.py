"""The first minutes with the command line, as somebody has them who knows nothing yet: what is shown, and said."""

import asyncio
import json
import os
import pty
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any
from uuid import UUID, uuid4

import pytest
from commands import COMMAND, SAMPLE, run, serving
from rich.console import Console

from chatkeep import NewConversation, NewMessage, __main__, open_store
from chatkeep.cli import conversations, tables, terminal
from chatkeep.cli.calls import calls_of
from chatkeep.cli.ids import conversation_of
from chatkeep.errors import InvalidInput, NotFound
from chatkeep.model import ImportedMessage
from chatkeep.recorder.journal import Dead, Entry, insert_dead, insert_entries, open_journal

ID = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")


@pytest.fixture
def env(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """The environment of somebody with an empty home."""
    for name in [name for name in os.environ if name.startswith(("CHATKEEP_", "XDG_"))]:
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    return {"HOME": str(tmp_path), "COLUMNS": "80", "NO_COLOR": "1"}


@pytest.fixture
def filled(env: dict[str, str]) -> dict[str, str]:
    """The same, with the sample in the database of the data folder."""
    run(env, "import", SAMPLE)
    return env


@pytest.fixture
def on_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """Standard output is a terminal of 80 columns."""
    console = Console(highlight=False, force_terminal=True, color_system=None, width=80)
    for module in (terminal, tables, conversations):
        monkeypatch.setattr(module, "out", console)


# --- what is shown --------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("on_terminal")
def test_a_terminal_of_80_columns(filled: dict[str, str]) -> None:
    """Lines of the list fit, with whole ids; a prefix of one shows, searches in, and deletes its conversation."""
    head, *lines = run(filled, "list").stdout.splitlines()
    assert head.split() == ["ID", "UPDATED", "MSGS", "TITLE"]
    assert all(ID.match(line) and len(line) <= 80 for line in lines)
    start = next(line for line in lines if "An assistant" in line)[:5]
    assert "→ search_messages({" in run(filled, "show", start).stdout
    found = run(filled, "search", "conversations", "--conversation", start).stdout
    assert found.startswith(start)
    assert {line[:5] for line in found.splitlines() if ID.match(line)} == {start}

    run(filled, "delete", start, code=1, stdin=b"n\n")
    assert start in run(filled, "list").stdout
    assert "tools, 9 messages)" in " ".join(run(filled, "delete", start, stdin=b"y\n").stdout.split())
    assert "local has no conversation" in run(filled, "show", start, code=1).stderr
    assert len(run(filled, "export").stdout.splitlines()) == 6


def test_a_pipe(filled: dict[str, str]) -> None:
    """Lines with tabs: whole ids, times and titles, without a head; notes are not among them."""
    done = run(filled, "list", "--limit", "5")
    rows = [line.split("\t") for line in done.stdout.splitlines()]
    assert all(len(row) == 4 and ID.fullmatch(row[0]) for row in rows)
    assert ["8", "Three answers to one question"] in [row[2:] for row in rows]
    assert all(re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d[+-]\d\d:\d\d", row[1]) for row in rows)
    assert "5 of 7" in done.stderr
    (hit,) = run(filled, "search", "chat", "open_store").stdout.splitlines()
    conversation, message, _, role, title, snippet = hit.split("\t")
    assert all(map(ID.fullmatch, (conversation, message)))
    assert (role, title) == ("assistant", "First steps")
    assert "open_store(" in snippet
    long = "word " * 100
    told = {
        "id": "long",
        "title": "a\tb\n\x9bc",
        "messages": [{"id": "1", "parent_id": None, "role": "user", "content": f"{long}\tend"}],
    }
    run(filled, "import", "-", stdin=json.dumps(told).encode())
    listed = run(filled, "list", "--limit", "1").stdout
    assert listed.count("\n") == 1
    assert listed.split("\t")[3] == "a␉b␊\ufffdc\n"
    assert f"{long}\tend\n" in run(filled, "show", listed[:8]).stdout


def test_json(filled: dict[str, str]) -> None:
    """Each line is a record with the fields of the HTTP API, without anything else on standard output."""

    def records(*arguments: str, code: int = 0) -> list[dict[str, Any]]:
        return [json.loads(line) for line in run(filled, *arguments, "--json", code=code).stdout_bytes.splitlines()]

    listed = records("list")
    assert len(listed) == 7
    assert {"id", "title", "last_seq", "updated_at", "labels"} <= listed[0].keys()
    (shown,) = records("show", next(each["id"] for each in listed if each["title"] == "An assistant with tools"))
    assert len(shown["messages"]["items"]) == shown["last_seq"]
    assert [each["role"] for each in shown["messages"]["items"]][:2] == ["system", "user"]
    (hit,) = records("search", "chat", "open_store")
    assert (hit["title"], hit["message"]["role"]) == ("First steps", "assistant")
    assert records("owners", "list") == [{"owner_id": "local", "conversations": 7}]
    assert [each["provider_name"] for each in records("providers", "list")] == ["extractive"]
    (status,) = records("db", "status")
    assert status["revision"] == status["newest"]
    run(filled, "keys", "create", "ada", "--name", "night")
    (key,) = records("keys", "list")
    assert (key["owner_id"], key["name"], "secret_hash" in key) == ("ada", "night", False)
    assert records("list", "--owner", "nobody") == []


def test_a_journal(env: dict[str, str], tmp_path: Path) -> None:
    """`recorder status` shows whole ids and reasons, and is JSON if that is asked for; the exit code is 1."""
    journal, id_ = open_journal(tmp_path / "voice.journal", create=True), uuid4()
    one, two = (Entry(rid, "ada", id_.bytes, "{}", 2, 1_000_000, None).sealed() for rid in (1, 2))
    insert_entries(journal, [two])
    insert_dead(journal, [Dead(one, 1_000_000, "Conflict", "said otherwise before")])
    journal.close()
    assert f"\t{id_}\tada\tConflict: said" in run(env, "recorder", "status", "voice.journal", code=1).stdout
    found = json.loads(run(env, "recorder", "status", "voice.journal", "--json", code=1).stdout)
    assert (found["pending"], found["pending_bytes"], found["oldest"]) == (1, 2, "1970-01-01T00:00:01Z")
    assert [(each["number"], each["conversation_id"]) for each in found["dead_letters"]] == [(1, str(id_))]
    done = run(env, "recorder", "retry", "voice.journal", "--", "99999999999999999999", "-99999999999999999999", code=1)
    assert (done.stdout, done.stderr.count("\n")) == ("0 dead letters are delivered again\n", 1)


def test_a_list_that_is_empty_says_whose_it_is(env: dict[str, str]) -> None:
    """The library's example has another owner than the commands' default: both are named, and how to name one."""

    async def converse() -> None:
        async with open_store("sqlite:///chat.db") as store:
            made = await store.get_or_create_conversation("ada", NewConversation(context_id="support"))
            await store.append("ada", made.id, NewMessage(role="user", content="How hot should tea be?"))

    asyncio.run(converse())
    place = ("--database-url", "sqlite:///chat.db")
    for command in (["list"], ["search", "tea"], ["show", "abcd"]):
        done = run(env, *command, *place, code=1 if command[0] == "show" else 0)
        assert "local" in done.stderr
        assert "--owner names another one: ada" in done.stderr
        assert done.stdout == ""
    assert "How hot" in run(env, "list", *place, "--owner", "ada").stdout
    assert run(env, "owners", "list", *place).stdout == "1\tada\n"


def test_renaming_a_name_with_a_mistake_in_it(filled: dict[str, str]) -> None:
    """Nothing moves, nobody is made, and it is said; of the right name everything moves."""
    done = run(filled, "owners", "rename", "locla", "8f2c61d0")
    assert done.stdout == "0 conversations have a new owner\n"
    assert done.stderr == "locla had none; `chatkeep owners list` shows who has.\n"
    assert run(filled, "owners", "list").stdout == "7\tlocal\n"
    assert run(filled, "owners", "rename", "local", "8f2c61d0").stdout == "7 conversations have a new owner\n"
    assert run(filled, "owners", "list").stdout == "7\t8f2c61d0\n"


# --- ids ------------------------------------------------------------------------------------------------------


async def test_prefixes(store_url: str) -> None:
    """The beginning of an id finds the owner's only conversation with it, of many, by reading one page by id."""
    starts = ["0000", "0000", "7f3a0001", "7f3a0002", "ffff", "f00d", "1000"]
    ids = [UUID(start.ljust(32, digit)) for start, digit in zip(starts, "0123ff0", strict=True)]
    async with open_store(store_url) as store:
        for id_ in ids:
            await store.create_conversation("ada", NewConversation(id=id_, title=f"T{id_.hex[:8]}"))
        for n in range(30):
            await store.create_conversation("ada", NewConversation(id=UUID(int=0xABCD << 112 | n)))
            await store.create_conversation("bob", NewConversation(id=UUID(int=0x7F3A0003 << 96 | n)))
        for given, id_ in {
            "7f3a0001": ids[2],
            "7F3A-0002": ids[3],
            "ffff": ids[4],
            "1000": ids[6],
            str(ids[5])[:20]: ids[5],
        }.items():
            assert (await conversation_of(store, "ada", given)).id == id_
        assert (await conversation_of(store, "ada", str(ids[0]))).id == ids[0]
        with pytest.raises(InvalidInput) as several:
            await conversation_of(store, "ada", "7f3a")
        assert all(f"{id_}  T{id_.hex[:8]}" in str(several.value) for id_ in ids[2:4])
        with pytest.raises(InvalidInput) as many:
            await conversation_of(store, "ada", "abcd")
        assert str(many.value).count("\n") == 11
        for absent in ("7f3a0003", "beef", str(UUID(int=0x7F3A0003 << 96))):
            with pytest.raises(NotFound, match="bob"):
                await conversation_of(store, "ada", absent)
        for wrong in ("7f3", "", "tea!", "g" * 8, "0" * 33, "7f3a%"):
            with pytest.raises(InvalidInput):
                await conversation_of(store, "ada", wrong)


def test_keys_are_revoked_by_what_the_list_shows(filled: dict[str, str]) -> None:
    """A prefix or the key itself names it; an id is never cut, and the question of which is left to nobody."""
    keys = [run(filled, "keys", "create", "ada").stdout.strip() for _ in range(3)]
    ids = [line.split("\t")[0] for line in run(filled, "keys", "list").stdout.splitlines()]
    assert ids == [key.split("_")[1] for key in keys]
    assert "revoked" in run(filled, "keys", "revoke", ids[0][:8]).stdout
    run(filled, "keys", "revoke", keys[1])
    assert "no API key" in run(filled, "keys", "revoke", "0" * 16, code=1).stderr
    assert run(filled, "keys", "list").stdout.split("\t")[0] == ids[2]


# --- tool calls -----------------------------------------------------------------------------------------------

CALLS: list[tuple[dict[str, Any], list[str]]] = [
    ({"tool_calls": [{"id": "1", "function": {"name": "f", "arguments": '{"a": 1}'}}]}, ['→ f({"a": 1})']),
    ({"tool_calls": [{"type": "tool_use", "name": "f", "input": {"a": 1}}]}, ['→ f({"a": 1})']),
    ({"tool_calls": [{"name": "f", "args": {"a": [1]}, "id": "1"}]}, ['→ f({"a": [1]})']),
    ({"tool_calls": [{"function": None, "name": "f"}]}, ["→ f()"]),
    ({"tool_calls": [{"function": None}]}, ['→ {"function": null}']),
    ({"tool_calls": [{"function": "f"}, "f", 7, None, []]}, ['→ {"function": "f"}', "→ f", "→ 7", "→ ", "→ []"]),
    ({"tool_calls": {"name": "f", "arguments": 1}}, ["→ f(1)"]),
    ({"tool_calls": "f"}, ["→ f"]),
    ({"function_call": {"name": "f", "arguments": "{"}}, ["→ f({)"]),
    ({"tool_calls": None}, []),
]
PARTS: list[tuple[list[dict[str, Any]], list[str]]] = [
    ([{"type": "tool_call", "id": "1", "name": "f", "arguments": {"a": 1}}], ['→ f({"a": 1})']),
    ([{"type": "tool_use", "name": "f", "input": {}}], ["→ f({})"]),
    ([{"type": "tool_result", "tool_call_id": "1", "content": [{"text": "20 °C"}]}], ['← [{"text": "20 °C"}]']),
    ([{"type": "tool_result"}, {"type": "tool_call"}], ["← ", '→ {"type": "tool_call"}']),
    ([{"type": "text", "text": "x"}, {"type": "file", "name": 7}, {"type": "reasoning"}], ["[file 7]"]),
]


@pytest.mark.parametrize(
    ("given", "lines"),
    [*(({"metadata": each}, lines) for each, lines in CALLS), *(({"parts": each}, lines) for each, lines in PARTS)],
)
def test_every_call_is_shown(given: dict[str, Any], lines: list[str]) -> None:
    """Name and arguments are, of every shape that there is, and of none."""
    message = ImportedMessage.model_validate({"role": "assistant", "content": "x", **given})
    assert calls_of(message) == lines


def test_a_conversation_with_every_call_is_shown(env: dict[str, str]) -> None:
    """The command survives them all, and repeats no call that stands in the parts and in the metadata."""
    both = {"parts": PARTS[0][0], "metadata": CALLS[0][0]}
    given: list[dict[str, Any]] = [
        both,
        *({"parts": each} for each, _ in PARTS),
        *({"metadata": each} for each, _ in CALLS),
    ]
    messages = [
        {"id": str(n), "parent_id": str(n - 1) if n else None, "role": "assistant", "content": "", **each}
        for n, each in enumerate(given)
    ]
    run(env, "import", "-", stdin=json.dumps({"id": "calls", "messages": messages}).encode())
    shown = run(env, "show", run(env, "list").stdout[:36]).stdout
    assert shown.count('→ f({"a": 1})') == 1 + 1 + 2
    assert '→ {"function": "f"}' in shown


# --- what is said of mistakes ---------------------------------------------------------------------------------


MISTAKES: dict[str, tuple[list[str], str]] = {
    "no file": (["list"], r"there is no database .*chat\.db; `chatkeep import`, `ingest`, .* make one"),
    "no file to downgrade": (["db", "downgrade", "base", "--yes"], "there is no database"),
    "no file to look at": (["db", "status"], "there is no database"),
    "a folder": (["list", "--database-url", "sqlite:///."], r"is a folder; .*, such as sqlite:///\./chat\.db"),
    "no folder": (["import", str(SAMPLE), "--database-url", "sqlite:///no/x.db"], "there is no folder .*/no "),
    "another file": (["list", "--database-url", f"sqlite:///{SAMPLE}"], "the file is not a SQLite database"),
    "an option": (["list", "--database-url", "memory://?serch=off"], "no store option serch; did you mean search?"),
    "an option of a server": (
        ["list", "--database-url", "postgresql://u:zq7@127.0.0.1:1/x?poolsize=5"],
        "no store option poolsize; did you mean pool_size?",
    ),
    "no server": (
        ["list", "--database-url", "postgresql://u:zq7@127.0.0.1:1/x"],
        r"PostgreSQL cannot be reached \(got '127\.0\.0\.1:1/x: ConnectionRefusedError'\)$",
    ),
    "a driver": (["list", "--database-url", "postgresql+asyncpg://u:zq7@h/x"], r"mean postgresql://, without .*\?$"),
    "a scheme": (["list", "--database-url", "mongo://u:zq7@h/x"], r"did you mean mongodb://\?"),
    "a port": (["list", "--database-url", "postgresql://u:zq7@localhost:99999/x"], "must be at most 65535"),
    "an empty variable": (["list", "--database-url", ""], "a store's URL must begin with"),
    "bytes of another encoding": (["list", "--database-url", "sqlite:///a\udcff.db"], "must be text of valid Unicode"),
    "the home of nobody": (["list", "--database-url", "sqlite:///~nouser/x.db"], "cannot use ~nouser/x.db: Could not"),
    "a path": (["list", "--database-url", "chat.db"], "a file is sqlite:///FILE"),
    "no file to import": (["import", str(SAMPLE), "no.jsonl"], r"^Error: cannot read no\.jsonl: No such file"),
    "a long name": (["import", str(SAMPLE), "x" * 300], "cannot read x+: File name too long"),
    "a folder to import": (["import", str(SAMPLE), "."], r"^Error: cannot read \.: it is a folder"),
    "no journal": (["recorder", "status", "."], "the journal cannot be opened: unable to open"),
    "no name": (["ingest", "", "."], "^Error: name must not be empty"),
    "a scope": (["keys", "create", "ada", "--scope", "all"], r"the scopes are chatkeep:read, .* \(got 'all'\)"),
    "a long key": (["keys", "create", "ada", "--name", "x" * 256], r"at most 255 characters \(got '256 characters'\)"),
    "an open server": (["serve", "--host", "0.0.0.0"], r"^Error: --host: other machines .* Set CHATKEEP_AUTH=jwt"),
    "nothing to search": (["search", "-", "--database-url", "memory://"], "word"),
}  # fmt: skip


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_are_sentences(env: dict[str, str], name: str, tmp_path: Path) -> None:
    """Each is said once, in one line on standard error, without a password, and makes no file."""
    arguments, said = MISTAKES[name]
    done = run(env, *arguments, code=2 if arguments[0] == "serve" else 1)
    assert re.search(said, done.stderr)
    assert done.stderr.startswith("Error: ")
    assert done.stderr.count("\n") == 1
    assert "zq7" not in done.stderr
    assert done.stdout == ""
    assert [path for path in tmp_path.rglob("*.db*") if name != "no name"] == []


@contextmanager
def without_rights() -> Iterator[None]:
    """Do something as a user who is not root."""
    user = os.geteuid()
    if user == 0:
        os.seteuid(65_534)
    try:
        yield
    finally:
        os.seteuid(user)


def test_a_file_that_may_not_be_used(env: dict[str, str]) -> None:
    """A file or folder that the user may not use is named, and so is one that cannot be reached."""
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        place.chmod(0o755)
        (place / "shut").mkdir()
        (place / "chat.db").touch(0o400)
        (place / "shut").chmod(0o555)
        with without_rights():
            for file, said in {
                "chat.db": f"this user may not read and write {place / 'chat.db'}",
                "shut/x.db": f"this user may not make a database in {place / 'shut'}",
                f"{'x' * 300}": "File name too long",
            }.items():
                done = run(env, "db", "upgrade", "--database-url", f"sqlite:///{place / file}", code=1)
                assert said in done.stderr
                assert done.stderr.count("\n") == 1


def test_a_home_that_cannot_be_written(env: dict[str, str]) -> None:
    """Without a folder for data, as a user of a container may be, a command says what to set."""
    done = run({**env, "XDG_DATA_HOME": "/dev/null"}, "list", code=1)
    said = (
        "cannot make the folder of the default database, /dev/null/chatkeep: Not a directory; set CHATKEEP_DATABASE_URL"
    )
    assert done.stderr == f"Error: {said}\n"


def test_a_port_that_is_taken(env: dict[str, str]) -> None:
    """It is named, with what to do."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        done = run(env, "serve", "--port", str(other.getsockname()[1]), code=2)
    assert re.fullmatch(
        r"Error: --port: port \d+ of 127\.0\.0\.1 is in use\. Stop .*; 0: any free port\.\n", done.stderr
    )


def test_a_package_that_is_missing(filled: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    """The extra that brings it is named: of a database, and of the server."""
    for name in [name for name in sys.modules if name.startswith("chatkeep.stores.postgres")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "asyncpg", None)
    done = run(filled, "list", "--database-url", "postgresql://h/x", code=1)
    assert done.stderr == "Error: postgresql:// needs asyncpg: pip install 'chatkeep[postgres]'\n"
    monkeypatch.setitem(sys.modules, "mcp.server.stdio", None)
    done = run(filled, "mcp", code=1)
    assert done.stderr.endswith("Error: this needs mcp.server.stdio: pip install 'chatkeep[server]'\n")


def test_a_misspelt_variable_is_named(filled: dict[str, str]) -> None:
    """One that looks like a setting is; others, such as those that Kubernetes sets, are not."""
    others = {"CHATKEEP_DATABSE_URL": "x", "CHATKEEP_PORT_8765_TCP": "x", "CHATKEEP_PROVIDER_KEY": "x"}
    done = run({**filled, **others}, "list")
    said = "Warning: CHATKEEP_DATABSE_URL is not a setting, and is not read; did you mean CHATKEEP_DATABASE_URL?\n"
    assert done.stderr == said


def test_a_server_with_tokens_says_how_to_get_a_key(env: dict[str, str]) -> None:
    """What it prints can be pasted into a shell, and is not refused."""
    settings = {"CHATKEEP_AUTH": "jwt", "CHATKEEP_JWT_SECRET": "x" * 32, "CHATKEEP_ALLOWED_HOSTS": "chat.example.org"}
    place = {**os.environ, **env, "CHATKEEP_DATABASE_URL": "sqlite:///served.db", **settings}
    place["PATH"] = f"{Path(sys.executable).parent}:{place['PATH']}"
    with serving(place) as (_, process):
        assert process.stdout is not None
        lines = [process.stdout.readline().strip() for _ in range(3)]
        assert lines[1].startswith("KEY=$(chatkeep keys create local --database-url sqlite:///served.db)")
        done = subprocess.run(["sh", "-c", f"{lines[1]}\n{lines[2]} -sf"], env=place, capture_output=True, check=True)
    assert json.loads(done.stdout)["items"] == []


FORGED = "Tea\nError: forged\x1b[2J"


def test_what_others_wrote_stays_in_its_line(env: dict[str, str]) -> None:
    """Titles, owners, names of files and of fields neither end the line that tells them nor reach the terminal."""
    one, two = (f"abcdef00-0000-0000-0000-00000000000{n}" for n in (1, 2))
    talks = [{"id": id_, "title": FORGED, "messages": []} for id_ in (one, two)]
    field = {"id": "x", "messages": [{"id": "1", "role": "user", "content": "", FORGED: 1}]}
    lines = "\n".join(map(json.dumps, [*talks, field]))
    Path("folder").mkdir()
    (Path("folder") / "a.\n\x1b[2J").touch()
    said = [
        run(env, "import", "-", "--owner", FORGED, stdin=lines.encode(), code=1).stderr,
        run(env, "show", "abcdef", "--owner", FORGED, code=1).stderr,
        run(env, "show", "abcdef", code=1).stderr,
        run(env, "delete", one, "--owner", FORGED, code=1).stderr,
        run(env, "delete", one, "--owner", FORGED, "--yes").stdout,
        run(env, "show", two, "--owner", FORGED).stdout,
        run(env, "erase", FORGED, code=1).stderr,
        run(env, "ingest", "Tea", "folder").stderr,
    ]
    assert [text for text in said if "\x1b" in text or "\nError: forged" in text or "␊" not in text] == []


def test_a_command_to_be_pasted_is_quoted(env: dict[str, str]) -> None:
    """An owner's name is one argument of the command that goes on after it."""
    for owner in ("x'; reboot; '", "y"):
        run(env, "import", "-", "--owner", owner, stdin=b'{"id": "1", "messages": []}')
    assert """--after 'x'"'"'; reboot; '"'"'', or""" in run(env, "owners", "list", "--limit", "1").stderr


@pytest.mark.parametrize("command", ["owners list --after", "keys revoke", "keys create ada --name", "backup"])
def test_an_argument_that_is_no_text(filled: dict[str, str], command: str) -> None:
    """Bytes that are not UTF-8 are said to be none."""
    done = run(filled, *command.split(), "\udcff\udcff", code=1)
    assert done.stderr == "Error: an argument has bytes that are not text; give it in UTF-8\n"


def test_an_expiry_that_no_calendar_has(filled: dict[str, str]) -> None:
    """The most days are said."""
    done = run(filled, "keys", "create", "ada", "--days", "3000000", code=2)
    assert done.stderr == "Error: --days: a key lasts at most 36,500 days; without the option it does not expire\n"


def test_the_export_of_a_misspelt_owner(filled: dict[str, str]) -> None:
    """It says that it is empty, and who there is."""
    done = run(filled, "export", "--owner", "locla")
    assert done.stdout == ""
    assert done.stderr == "locla has no conversation to export; --owner names another one: local\n"


def test_what_is_beyond_the_highest_limit(env: dict[str, str]) -> None:
    """No limit is advised that would be refused."""
    messages = [{"id": str(n), "role": "user", "content": "tea"} for n in range(1_001)]
    lines = [{"id": str(n), "messages": []} for n in range(1_000)]
    talks = "\n".join(map(json.dumps, [*lines, {"id": "long", "messages": messages}]))
    run(env, "import", "-", stdin=talks.encode())
    for command in ("list", "search tea", f"show {run(env, 'search', 'tea').stdout[:36]}"):
        assert "--limit shows more" in run(env, *command.split(), "--limit", "999").output
        assert "`chatkeep export` has all" in run(env, *command.split(), "--limit", "1000").output


def test_help_is_wrapped_by_the_terminal_alone(env: dict[str, str]) -> None:
    """Lines of the source do not end lines of the help."""
    assert "2 not understood; 130 Ctrl-C." in run(env, "--help").stdout


# --- a program of its own -------------------------------------------------------------------------------------


def test_a_real_terminal_and_a_pipe_that_closes(filled: dict[str, str]) -> None:
    """On a terminal there is a table; `| head -1` ends quietly."""
    environment = {**os.environ, **filled}
    main, side = pty.openpty()
    subprocess.run([*COMMAND, "list"], stdout=side, env=environment, check=True)
    os.close(side)
    assert b"UPDATED" in os.read(main, 10_000)
    os.close(main)
    command = f"{' '.join(COMMAND)} list | head -1; {' '.join(COMMAND)} list 2>&1 >/dev/full"
    done = subprocess.run(["bash", "-c", command], env=environment, capture_output=True, text=True, check=False)
    assert ID.match(done.stdout)
    assert done.stderr == ""


@pytest.mark.parametrize("command", ["list", "list --json", "show 8072", "show 8072 --json", "db status", "export"])
def test_standard_output_that_cannot_be_written(filled: dict[str, str], command: str) -> None:
    """A reader that has gone is 141, as documented; a full disk and a closed output are sentences."""
    chatkeep, environment = " ".join([*COMMAND, command]), {**os.environ, **filled}
    for ending, said in {
        "| true; exit ${PIPESTATUS[0]}": (141, ""),
        ">/dev/full": (1, "Error: cannot write standard output: No space left on device\n"),
        ">&-": (1, "Error: standard output is closed\n"),
    }.items():
        if ending == ">&-" and not command.endswith(("--json", "export")):
            continue  # text is written to nowhere
        done = subprocess.run(
            ["bash", "-c", f"{chatkeep} {ending}"], env=environment, stderr=subprocess.PIPE, text=True, check=False
        )
        assert (done.returncode, done.stderr) == said


def test_standard_input_that_is_closed(env: dict[str, str]) -> None:
    """It is said, and nothing is read."""
    command = ["bash", "-c", f"{' '.join(COMMAND)} import - <&-"]
    done = subprocess.run(command, env={**os.environ, **env}, stderr=subprocess.PIPE, text=True, check=False)
    assert (done.returncode, done.stderr) == (1, "Error: cannot read standard input: it is closed\n")


def test_characters_that_the_encoding_lacks(filled: dict[str, str]) -> None:
    """They are shown by their numbers; what has an encoding of its own is not changed."""
    environment = {**os.environ, **filled, "PYTHONIOENCODING": "latin-1"}
    shown = {
        arguments: subprocess.run(
            [*COMMAND, *arguments.split()], env=environment, capture_output=True, check=True
        ).stdout
        for arguments in ("list", "list --json")
    }
    assert rb"\u4fdd\u5b58\u5bf9\u8bdd" in shown["list"]
    assert "保存对话".encode() in shown["list --json"]


def test_ctrl_c_anywhere_is_one_line(env: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    """A command that has no word of its own for it says that it was stopped."""

    def stop(_: object) -> str:
        raise KeyboardInterrupt

    monkeypatch.setattr(conversations, "store_url", stop)
    assert run(env, "list", code=130).stderr == "Error: stopped\n"


def test_ctrl_c_before_there_is_a_command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """While the packages are imported, which takes a moment, it is the same line."""

    class Interrupted(ModuleType):
        def __getattr__(self, name: str) -> object:
            raise KeyboardInterrupt

    monkeypatch.setitem(sys.modules, "chatkeep.cli.app", Interrupted("app"))
    with pytest.raises(SystemExit) as ended:
        __main__.main()
    assert (ended.value.code, capsys.readouterr().err) == (130, "Error: stopped\n")


@pytest.mark.parametrize("seconds", [0, 1])
def test_ctrl_c_in_an_import_is_one_line(env: dict[str, str], tmp_path: Path, seconds: int) -> None:
    """An import that makes the database, or waits for its input, says how far it came, and what to do."""
    os.mkfifo(tmp_path / "pipe")
    with subprocess.Popen(
        [*COMMAND, "import", "pipe"], env={**os.environ, **env}, stderr=subprocess.PIPE, text=True
    ) as process:
        with (tmp_path / "pipe").open("wb") as pipe:
            pipe.write(SAMPLE.read_bytes())
            pipe.flush()
            while not (files := list(tmp_path.rglob("chat.db-wal"))) or not files[0].stat().st_size:
                assert process.poll() is None
            time.sleep(seconds)
            process.send_signal(signal.SIGINT)
            assert process.stderr is not None
            said = process.stderr.read()
        assert process.wait(10) == 130
    assert re.fullmatch(r"Error: stopped; run it again to go on\. Conversations so far: \d+ new, .*\n", said)
