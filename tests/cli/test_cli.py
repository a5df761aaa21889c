"""The command line: in this process, and as a process of its own where it is killed or serves."""

import asyncio
import gzip
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from uuid import UUID, uuid4

import httpx2
import pytest
from commands import SAMPLE, run, serving

from chatkeep import NewConversation, __main__, open_store
from chatkeep.cli import terminal
from chatkeep.migrations import HEAD
from chatkeep.model import ImportedConversation
from chatkeep.settings import Settings


@pytest.fixture
def env(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """The environment of a user with an empty home and a wide terminal."""
    for name in [name for name in os.environ if name.startswith(("CHATKEEP_", "XDG_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setattr(terminal.out, "width", 160)
    return dict(os.environ) | {"HOME": str(tmp_path), "COLUMNS": "160", "NO_COLOR": "1"}


@pytest.fixture
def url(tmp_path: Path) -> str:
    """The URL of a file that is not there yet."""
    return f"sqlite:///{tmp_path / 'chat.db'}"


def test_import_reports_and_export_gives_it_back(env: dict[str, str], url: str, tmp_path: Path) -> None:
    """A file goes in, with counts and a rate, and comes out the same, plain and packed, from stdin and to stdout."""
    done = run(env, "import", SAMPLE, "--database-url", url)
    counts = "7 new, 0 known, 0 changed, 0 refused"
    assert re.search(rf"38 messages in [\d.]+ s \([\d,]+/s\); conversations: {counts}", done.stdout)

    exported = run(env, "export", "--database-url", url).stdout
    run(env, "export", tmp_path / "out.jsonl.gz", "--database-url", url)
    assert gzip.decompress((tmp_path / "out.jsonl.gz").read_bytes()).decode() == exported
    assert not list(tmp_path.glob("*.part"))

    other = f"sqlite:///{tmp_path / 'other.db'}"
    run(env, "import", "-", "--database-url", other, stdin=exported.encode())
    run(env, "import", tmp_path / "out.jsonl.gz", "--database-url", other)
    assert run(env, "export", "--database-url", other).stdout == exported


def test_import_says_which_lines_are_bad(env: dict[str, str], url: str, tmp_path: Path) -> None:
    """Bad lines are named with file and number, the rest is stored, and the exit code says that something was wrong."""
    file = tmp_path / "mixed.jsonl"
    file.write_bytes(b"{}\n" + SAMPLE.read_bytes() + b"nonsense\n")
    done = run(env, "import", file, "--database-url", url, code=1)

    assert "mixed.jsonl:1: " in done.stderr
    assert "mixed.jsonl:9: not JSON" in done.stderr
    assert "38 messages in" in done.stdout
    assert "7 new, 0 known, 0 changed, 2 refused" in done.stdout


def test_import_survives_a_broken_archive(env: dict[str, str], url: str, tmp_path: Path) -> None:
    """A truncated gzip file is reported, what could be read of the others is stored, and a missing file is an error."""
    (tmp_path / "broken.gz").write_bytes(gzip.compress(SAMPLE.read_bytes())[:-200])
    done = run(env, "import", tmp_path / "broken.gz", SAMPLE, "--database-url", url, code=1)
    assert "broken.gz: cannot be read further" in done.stderr
    assert "7" in run(env, "list", "--database-url", url).stdout
    assert "cannot read" in run(env, "import", tmp_path / "absent", "--database-url", url, code=1).stderr


def test_list_and_show_are_for_people(env: dict[str, str], url: str) -> None:
    """The list has titles and ids; a conversation shows its path, roles, times, tool calls and what broke off."""
    run(env, "import", SAMPLE, "--database-url", url)
    done = run(env, "list", "--database-url", url, "--limit", "6")
    listed = done.stdout
    assert "6 of 7" in done.stderr
    (line,) = [line for line in listed.splitlines() if "An assistant with tools" in line]
    shown = run(env, "show", line.split()[0], "--database-url", url).stdout
    assert "→ search_messages(" in shown
    assert "assistant (interrupted)" in shown
    assert re.search(r"user  2026-11-05 \d\d:00", shown)
    branched = next(line.split()[0] for line in listed.splitlines() if "Three answers" in line)
    assert "4 messages" in run(env, "show", branched, "--database-url", url).stdout
    assert "4 more on other branches" in run(env, "show", branched, "--database-url", url).stdout


def test_control_characters_are_shown_not_obeyed(env: dict[str, str], url: str) -> None:
    """A message cannot give the terminal orders."""
    content = "\x1b[2Jgone\x07\u202eeurt"
    hostile = {"id": "x", "messages": [{"id": "1", "parent_id": None, "role": "user", "content": content}]}
    run(env, "import", "-", "--database-url", url, stdin=json.dumps(hostile).encode())
    (id_,) = re.findall(r"[0-9a-f-]{36}", run(env, "list", "--database-url", url).stdout)
    shown = run(env, "show", id_, "--database-url", url).stdout
    assert "␛[2Jgone␇" in shown
    assert "\x1b" not in shown
    assert "\ufffdeurt" in shown


def test_errors_are_sentences(env: dict[str, str], url: str) -> None:
    """What goes wrong is said in one line without a traceback."""
    for arguments in (["list"], ["show", "x"], ["export"]):
        done = run(env, *arguments, "--database-url", url, code=1)
        assert done.stderr.startswith("Error: there is no database")
        assert done.stderr.count("\n") == 1
        assert "Traceback" not in done.stderr
    run(env, "import", SAMPLE, "--database-url", url)
    assert "or its first characters, 4 or more" in run(env, "show", "x", "--database-url", url, code=1).stderr
    assert "a store's URL must begin with" in run(env, "list", "--database-url", "mysql://x", code=1).stderr


def test_the_schema_is_managed(env: dict[str, str], url: str) -> None:
    """status, upgrade and downgrade say where the schema is; without a schema the other commands say what to do."""
    run(env, "db", "upgrade", "--database-url", url)
    assert f"revision {HEAD}, newest {HEAD}" in run(env, "db", "status", "--database-url", url).stdout
    run(env, "db", "downgrade", "base", "--database-url", url, code=1)  # nobody confirms
    run(env, "db", "downgrade", "base", "--yes", "--database-url", url)
    assert "revision none" in run(env, "db", "status", "--database-url", url, code=1).stdout
    assert "chatkeep db upgrade" in run(env, "list", "--database-url", url, code=1).stderr
    assert (
        "the revisions of the schema are"
        in run(env, "db", "downgrade", "7", "--yes", "--database-url", url, code=1).stderr
    )


def test_an_upgrade_ends_with_a_whole_index(env: dict[str, str], url: str) -> None:
    """Nothing is left to whoever opens the store next, and nothing is warned of."""
    run(env, "import", SAMPLE, "--database-url", url)
    run(env, "db", "downgrade", "0003", "--yes", "--database-url", url)
    assert run(env, "db", "upgrade", "--database-url", url).stderr == ""
    assert "keyboards" in run(env, "search", "keyboards", "--database-url", url).stdout


@pytest.mark.parametrize("stop", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.long)])
def test_what_was_acknowledged_survives_a_kill(env: dict[str, str], url: str, tmp_path: Path, stop: int) -> None:
    """A client stores over HTTP, the server is killed, a new one has everything, and stops cleanly when asked."""
    with serving(env, "--database-url", url) as (base, process), httpx2.Client(base_url=base) as client:
        made = client.post("/api/conversations", json={"title": "Kept"}).raise_for_status().json()
        path = f"/api/conversations/{made['id']}/messages"
        for number in range(20):
            client.post(path, json={"role": "user", "content": f"message {number}"}).raise_for_status()
        process.send_signal(signal.SIGKILL)
        assert process.wait(10) == -signal.SIGKILL
    with serving(env, "--database-url", url) as (base, process):
        page = httpx2.get(base + path).raise_for_status().json()
        assert [item["content"] for item in page["items"]] == [f"message {number}" for number in range(20)]
        assert (tmp_path / "chat.db-wal").exists()
        process.send_signal(stop)
        assert process.wait(10) == 0
        assert not (tmp_path / "chat.db-wal").exists()


def test_the_curl_commands_that_serve_prints_work(env: dict[str, str], url: str) -> None:
    """The two commands of the greeting can be pasted into a shell."""
    with serving(env, "--database-url", url) as (_, process):
        assert process.stdout is not None
        lines = [process.stdout.readline(), process.stdout.readline(), process.stdout.readline()]
        commands = [line.strip() for line in lines if line.strip().startswith("curl ")]
        answers = [subprocess.check_output(f"{command} -s", shell=True, text=True) for command in commands]
    assert len(answers) == 2
    assert json.loads(answers[0])["items"] == []
    assert json.loads(answers[1])["title"] == "My first"


def test_without_a_url_the_file_is_in_the_users_data_folder(env: dict[str, str], tmp_path: Path) -> None:
    """The default database is the user's own, and the environment may name another."""
    run(env, "import", SAMPLE)
    (file,) = tmp_path.rglob("chat.db")
    assert "chatkeep" in str(file.relative_to(tmp_path))
    elsewhere = {"CHATKEEP_DATABASE_URL": f"sqlite:///{tmp_path / 'env.db'}"}
    run(env | elsewhere, "db", "upgrade")
    assert (tmp_path / "env.db").exists()


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("ALLOWED_HOSTS", '["a.example"', "CHATKEEP_ALLOWED_HOSTS must be a list such as"),
        ("ALLOWED_HOSTS", "[" * 100_000, "CHATKEEP_ALLOWED_HOSTS must be a list such as"),
        ("ALLOWED_HOSTS", "[7]", "CHATKEEP_ALLOWED_HOSTS must be text (got 7)"),
        ("CORS_ORIGINS", "*", "CHATKEEP_CORS_ORIGINS may not have * or null"),
        ("CORS_ORIGINS", '["null"]', "CHATKEEP_CORS_ORIGINS may not have * or null"),
        ("TRUSTED_PROXIES", "10.0.0.1,zq7", "CHATKEEP_TRUSTED_PROXIES must be addresses or networks"),
        ("PORT", "80a", "CHATKEEP_PORT must be a whole number (got '80a')"),
        ("METRICS", "maybe", "CHATKEEP_METRICS must be true or false (got 'maybe')"),
        ("AUTH", "\x1b", "CHATKEEP_AUTH must be one of 'none' or 'jwt' (got '\\x1b')"),
        ("JWT_SECRET", "zq7", "CHATKEEP_AUTH is none"),
        ("WORKERS", "0", "CHATKEEP_WORKERS must be at least 1 (got '0')"),
        ("LOG_LEVEL", "9" * 1_000, f"(got '{'9' * 59}…)"),
    ],
)
def test_invalid_settings_are_sentences(env: dict[str, str], name: str, value: str, reason: str) -> None:
    """A setting that is not valid is named in one line: what it must be, and what it is, unless that is secret."""
    done = run(env | {f"CHATKEEP_{name}": value}, "list", code=1)
    assert reason in done.stderr
    assert "zq7" not in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("value", ["a.example, b.example", "a.example,b.example,", '["a.example", "b.example"]'])
def test_lists_in_the_environment(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    """A list is written with commas, or as JSON."""
    monkeypatch.setenv("CHATKEEP_ALLOWED_HOSTS", value)
    assert Settings().allowed_hosts == ["a.example", "b.example"]


@pytest.mark.parametrize("host", ["0.0.0.0", "192.168.1.5", "example.com", "::"])
def test_serving_other_machines_is_refused(env: dict[str, str], url: str, host: str) -> None:
    """Without authentication only this machine is served, and the refusal says why."""
    done = run(env, "serve", "--host", host, "--database-url", url, code=2)
    assert "CHATKEEP_AUTH=jwt" in " ".join(done.stderr.replace("│", " ").split())


async def fill(url: str) -> UUID:
    """Store three conversations with labels, one of them in a project, and return its id."""
    project = uuid4()
    async with open_store(url) as store:
        one = ImportedConversation(title="One", labels=("pinned",), project_id=project, project_name="Tea")
        await store.import_conversation("local", one)
        await store.create_conversation("local", NewConversation(title="Two", labels=("pinned", "archived")))
        await store.create_conversation("local", NewConversation(title="Three"))
    return project


def test_list_takes_filters(env: dict[str, str], url: str) -> None:
    """A list may be of a project, and with and without labels."""
    project = asyncio.run(fill(url))

    def titles(*arguments: str) -> set[str]:
        listed = run(env, "list", "--database-url", url, *arguments).stdout
        return {title for title in ("One", "Two", "Three") if title in listed}

    assert titles("--label", "pinned") == {"One", "Two"}
    assert titles("--label", "pinned", "--label", "!archived") == {"One"}
    assert titles("--label", "!archived") == {"One", "Three"}
    assert titles("--project", str(project)) == {"One"}
    assert titles("--project", str(project)[:6]) == titles("--project", "Tea") == {"One"}
    assert "has no project x" in run(env, "list", "--database-url", url, "--project", "x", code=1).stderr


def test_help_and_version(env: dict[str, str]) -> None:
    """Every command has a help text, and the version is told."""
    assert "chatkeep 0." in run(env, "--version").stdout
    for command in ("serve", "import", "export", "backup", "list", "show", "db"):
        assert command in run(env, "--help").stdout
        assert len(run(env, command, "--help").stdout) > 200


@pytest.mark.parametrize(
    "command",
    [
        "serve",
        "import",
        "export",
        "backup",
        "list",
        "show",
        "erase",
        "db upgrade",
        "db distribute",
        "keys create",
        "owners rename",
    ],
)
def test_help_names_every_database(env: dict[str, str], command: str) -> None:
    """The help of each command that opens a store says how each database is named."""
    shown = run(env, *command.split(), "--help").stdout
    assert [scheme for scheme in ("sqlite:///", "postgresql://", "mongodb://") if scheme not in shown] == []


def test_help_shows_defaults(env: dict[str, str]) -> None:
    """Defaults are not lost as markup of the terminal."""
    shown = run(env, "keys", "create", "--help").stdout
    assert "Default: read and write." in shown
    assert "Default: never." in shown


def test_a_missing_extra_is_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    """Installed without the server extra, the command says how to get it."""
    monkeypatch.setitem(sys.modules, "typer", None)
    monkeypatch.delitem(sys.modules, "chatkeep.cli.app", raising=False)
    with pytest.raises(SystemExit, match=r"chatkeep\[server\]"):
        __main__.main()
