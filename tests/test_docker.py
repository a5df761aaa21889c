"""The container files, as far as they can be judged without an engine."""

import asyncio
import json
import os
import subprocess
import sysconfig
from pathlib import Path
from typing import Any
from urllib.parse import quote

import asyncpg
import yaml
from benchmarks.postgres_server import FAST, plain

from chatkeep import NewConversation, NewMessage, open_store
from chatkeep.settings import Settings
from servers.postgres import started

ROOT = Path(__file__).parents[1]
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "compose.yaml").read_text("utf-8"))


def test_the_dockerfile_is_clean() -> None:
    """hadolint finds nothing, and the server does not run as root."""
    hadolint = Path(sysconfig.get_path("scripts")) / "hadolint"
    done = subprocess.run([hadolint, ROOT / "Dockerfile"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")
    assert "\nUSER 10001\n" in (ROOT / "Dockerfile").read_text("utf-8")


def test_compose_keeps_the_specification() -> None:
    """The Compose specification's JSON schema finds nothing: no key is misspelled, no value of the wrong kind."""
    judge = Path(sysconfig.get_path("scripts")) / "check-jsonschema"
    schema = ["--builtin-schema", "vendor.compose-spec"]
    done = subprocess.run([judge, *schema, ROOT / "compose.yaml"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, ""), done.stdout


def test_settings_that_the_files_use_exist() -> None:
    """Every CHATKEEP_ variable in them is a setting, and every secret has to be given."""
    names = {f"CHATKEEP_{name.upper()}" for name in Settings.model_fields}
    words = (ROOT / "Dockerfile").read_text("utf-8") + json.dumps(COMPOSE)
    used = {word.split("=")[0] for word in words.replace('"', " ").replace("$", " ").replace("{", " ").split()}
    assert {word.partition(":")[0] for word in used if word.startswith("CHATKEEP_")} <= names
    environment = COMPOSE["services"]["chatkeep"]["environment"]
    assert environment["CHATKEEP_JWT_SECRET"].startswith("${CHATKEEP_JWT_SECRET:?")


def test_the_server_needs_no_superuser(tmp_path: Path) -> None:
    """The role that compose.yaml makes can do all that chatkeep does, in a database of its own, and no more."""
    database = COMPOSE["services"]["database"]
    assert "POSTGRES_USER" not in database["environment"]
    assert [config["source"] for config in database["configs"]] == list(COMPOSE["configs"])
    script = tmp_path / "role.sql"
    # The superuser of the tests' server is called chatkeep.
    script.write_text(COMPOSE["configs"]["role"]["content"].replace("chatkeep", "application"))
    password = "zq7'"
    with started(**FAST) as server:
        to = plain(server.url())
        psql = [str(server.programs / "psql"), "--no-psqlrc", "-v", "ON_ERROR_STOP=1", "-d", to, "-f", str(script)]
        environment = {**os.environ, "DATABASE_PASSWORD": password}
        subprocess.run(psql, capture_output=True, check=True, env=environment, timeout=60)
        url = f"postgresql://application:{quote(password)}@127.0.0.1:{server.port}/application?durability=relaxed"
        asyncio.run(use(url))


async def use(url: str) -> None:
    """Store, find and remove something, down to the schema."""
    async with open_store(url) as store:
        talk = await store.create_conversation("ada", NewConversation())
        await store.append("ada", talk.id, [NewMessage(role="user", content="tea")])
        assert (await store.search_messages("ada", "tea")).items
        await store.erase_owner("ada")
        await store.migrate("base")
    connection = await asyncpg.connect(url.partition("?")[0])
    try:
        assert await connection.fetchval("SELECT current_setting('is_superuser')") == "off"
    finally:
        await connection.close()


def test_compose_waits_for_a_database_that_is_kept() -> None:
    """The server starts when the database answers, what is stored outlives containers, nothing is open to the net."""
    services = COMPOSE["services"]
    assert services["chatkeep"]["depends_on"]["database"]["condition"] == "service_healthy"
    assert services["database"]["healthcheck"]["test"]
    assert [volume.partition(":")[0] for volume in services["database"]["volumes"]] == list(COMPOSE["volumes"])
    assert all(port.startswith("127.0.0.1:") for port in services["chatkeep"]["ports"])
    assert "ports" not in services["database"]
