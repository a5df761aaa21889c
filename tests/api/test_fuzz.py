"""Schemathesis against the whole OpenAPI document: every check, all phases, on a real server.

`make fuzz` runs it at length; here it is a short run with fixed cases, on SQLite alone in `make test`.
"""

import os
import re
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
from test_server import served

from conftest import STORES

EXAMPLES = os.environ.get("CHATKEEP_FUZZ_EXAMPLES", "5")
"""Cases for each operation and phase; `make fuzz` says 500."""

SCHEMATHESIS = Path(sysconfig.get_path("scripts")) / "schemathesis"


LONG = [pytest.param(name, marks=pytest.mark.long) for name in ("postgres", "mongodb")]


@pytest.fixture(params=["sqlite", *LONG])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A database of each kind that a server of its own can use."""
    return STORES[request.param](tmp_path)


@pytest.mark.timeout(3_600)
def test_no_case_breaks_the_document(tmp_path: Path, url: str) -> None:
    """No 5xx, no status and no body that the document does not name, nothing let in without a token."""
    settings = {"auth": "jwt", "jwt_secret": "s" * 64, "rate_limit": "0", "failure_limit": "100000/second"}
    with served(tmp_path, database_url=url, log_level="warning", **settings) as (_, client):
        command = [sys.executable, "-m", "chatkeep", "keys", "create", "ada", "--database-url", url]
        key = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
        line = [
            str(SCHEMATHESIS), "run", f"{client.base_url}/api/openapi.json".replace("//api", "/api"),
            "-H", f"Authorization: Bearer {key}", "--checks", "all", "-n", EXAMPLES, "--seed", "1",
            "--generation-deterministic", "--continue-on-failure",
        ]  # fmt: skip
        done = subprocess.run(line, capture_output=True, text=True, cwd=tmp_path, check=False)
    print(done.stdout)
    assert done.returncode == 0, done.stdout
    assert re.search(r"Tested: 14\b", done.stdout)
    assert "Traceback" not in (tmp_path / "log").read_text()
