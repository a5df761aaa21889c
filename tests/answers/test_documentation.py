"""The example of docs/answers.md."""

import re
import subprocess
import sys
from pathlib import Path

PAGE = Path(__file__).parents[2] / "docs" / "answers.md"


def test_the_example_runs(tmp_path: Path) -> None:
    """It is a program that asks, follows and stores."""
    (example,) = re.findall(r"```python\n(.*?)```", PAGE.read_text("utf-8"), re.DOTALL)
    done = subprocess.run([sys.executable, "-c", example], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "How hot should tea be? "
    assert " end {'status': 'complete'}" in done.stdout
