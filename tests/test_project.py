"""The project's own rules, so that they hold without anybody watching."""

import ast
import re
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import chatkeep

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "chatkeep"

LAYERS = (
    {"errors", "py"},
    {"ids", "values", "model", "tree", "words", "cursor", "migrations"},
    {"access", "keys"},
    {"store"},
    {"stores"},
    {"formats", "recorder", "settings"},
    {"api", "integrations", "testing"},
    {"cli"},
    {"__main__", "__init__"},
)
"""What a module may import: only what stands in an earlier line, or beside it."""


def modules() -> list[Path]:
    """Every module of the package."""
    return sorted(path for path in SOURCE.rglob("*.py") if "versions" not in path.parts)


def part_of(name: str) -> str:
    """The first part below chatkeep of a dotted name."""
    return name.split(".")[1] if "." in name else "__init__"


def imports(path: Path) -> set[str]:
    """The parts of chatkeep that a module imports, wherever in the module it does."""
    tree = ast.parse(path.read_text("utf-8"))
    names = [node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.module]
    names += [alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names]
    return {part_of(name) for name in names if name.split(".")[0] == "chatkeep"}


def test_imports_point_one_way() -> None:
    """No module imports one of a later layer, and every module has a layer."""
    layer = {part: number for number, parts in enumerate(LAYERS) for part in parts}
    for path in modules():
        own = path.relative_to(SOURCE).parts[0].removesuffix(".py")
        later = {part for part in imports(path) if layer[part] > layer[own]}
        assert not later, f"{path.name} imports {later}"


def test_the_public_names_are_the_declared_ones() -> None:
    """`from chatkeep import …` offers what __all__ says, sorted, and nothing else."""
    public = {
        name for name, value in vars(chatkeep).items() if not name.startswith("_") and not hasattr(value, "__path__")
    }
    modules_ = {name for name in public if type(vars(chatkeep)[name]).__name__ == "module"}
    assert sorted(chatkeep.__all__) == list(chatkeep.__all__)
    assert set(chatkeep.__all__) == public - modules_


def test_the_changelog_begins_with_this_version() -> None:
    """The newest entry of the changelog is the package's version."""
    (newest, *_) = re.findall(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text("utf-8"), re.MULTILINE)
    assert newest == version("chatkeep")


def test_nothing_opens_sqlite_with_the_standard_library() -> None:
    """The package never imports sqlite3: see docs/decisions/0001-one-sqlite-library.md."""
    for path in modules():
        tree = ast.parse(path.read_text("utf-8"))
        found = [n for n in ast.walk(tree) if isinstance(n, ast.Import) and any(a.name == "sqlite3" for a in n.names)]
        assert not found, path


def test_only_the_settings_read_the_environment() -> None:
    """os.environ and os.getenv appear in one module of the package."""
    for path in set(modules()) - {SOURCE / "settings.py"}:
        assert not re.search(r"os\.environ|os\.getenv", path.read_text("utf-8")), path


def test_the_readme_runs(tmp_path: Path) -> None:
    """The library example of the README is a program that works, and so is it with the recorder in place of append."""
    example, recorder = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text("utf-8"), re.DOTALL)
    (append,) = re.findall(r" {8}await store.append.*\n", example)
    recording = "".join(f"        {line}\n" for line in recorder.splitlines())
    second = example.replace(append, recording).replace("import New", "import Recorder, New")
    for program, said in ((example, 1), (second, 2)):
        done = subprocess.run(
            [sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=False
        )
        lines = "".join(f"{number} user How hot should tea be?\n" for number in range(1, said + 1))
        assert (done.returncode, done.stdout) == (0, lines), done.stderr
