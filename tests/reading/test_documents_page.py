"""The example of docs/documents.md."""

import re
import subprocess
import sys
from pathlib import Path

PAGE = Path(__file__).parents[2] / "docs" / "documents.md"


def test_the_example_runs(tmp_path: Path) -> None:
    """It is a program that stores a document and finds passages of it."""
    (example,) = re.findall(r"```python\n(.*?)```", PAGE.read_text("utf-8"), re.DOTALL)
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "server.md").write_text((PAGE.parent / "server.md").read_text("utf-8"))
    done = subprocess.run([sys.executable, "-c", example], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert re.fullmatch(r"server\.md #\S+ [01]\.\d+\n", done.stdout)
