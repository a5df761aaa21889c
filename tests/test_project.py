"""The project's own rules, so that they hold without anybody watching."""

import ast
import re
import statistics
import tomllib
from collections.abc import Iterator, Mapping
from graphlib import CycleError, TopologicalSorter
from importlib.metadata import version
from pathlib import Path

import pytest

import chatkeep

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "chatkeep"

LAYERS = (
    {
        *(
            "errors",
            "extras",
            "ids",
            "validation",
            "values",
            "parts",
            "model",
            "model_settings",
            "events",
            "options",
            "tree",
            "words",
            "cursor",
        ),
        *("urls", "migrations"),
    },
    {"access", "turns", "providers", "projects", "documents", "store", "keys"},  # the ports
    {"stores"},
    {"recorder", "formats", "answers", "reading", "retrieval", "settings", "sync", "sync_loop"},
    {"api", "mcp", "integrations", "testing"},
    {"cli"},
    {"__main__", "__init__"},
)
"""What a file may import: only files of its own layer and of earlier ones. First those without I/O, then the ports."""

DATABASES = {"sqlite", "postgres", "mongo", "memory"}
"""The files and folders of stores/ that are a database each; the others are shared by them."""

MEDIAN_LINES, MOST_LINES, FILE_LINES = 8, 30, 600
"""The median and the 95th percentile of the lines of a function, and the most lines of a file."""


def paths() -> list[Path]:
    """Every file of the package."""
    return sorted(path for path in SOURCE.rglob("*.py") if "versions" not in path.parts)


def name_of(path: Path) -> str:
    """The dotted name of a file below chatkeep; a package is its __init__."""
    return ".".join(path.relative_to(SOURCE).with_suffix("").parts)


def sources() -> dict[str, str]:
    """The source of every file, by its name."""
    return {name_of(path): path.read_text("utf-8") for path in paths()}


def imports(name: str, source: str, files: Mapping[str, str]) -> set[str]:
    """The files of chatkeep that a file imports, wherever in it that is: `if TYPE_CHECKING` and functions, too."""
    wanted: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            wanted.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name} has a relative import"
            wanted.update(f"{node.module}.{alias.name}" for alias in node.names)
    return {file_of(import_, files) for import_ in wanted if import_.partition(".")[0] == "chatkeep"} - {name}


def file_of(import_: str, files: Mapping[str, str]) -> str:
    """The file behind the name of a module, or of something in a module."""
    below = import_.removeprefix("chatkeep").removeprefix(".")
    for module in (below, below.rpartition(".")[0]):
        for name in (module, f"{module}.__init__".removeprefix(".")):
            if name in files:
                return name
    raise AssertionError(f"no file of {import_}")


def layer_of(name: str) -> int:
    """The layer of a file, by the first part of its name."""
    (layer,) = (number for number, parts in enumerate(LAYERS) if name.partition(".")[0] in parts)
    return layer


def database_of(name: str) -> str | None:
    """The database that a file is a part of."""
    folder, _, rest = name.partition(".")
    part = rest.partition(".")[0]
    return part if folder == "stores" and part in DATABASES else None


def broken_rules(files: Mapping[str, str]) -> Iterator[str]:
    """What is wrong with the imports of these files."""
    graph = {name: imports(name, source, files) for name, source in files.items()}
    for name, imported in graph.items():
        yield from (
            f"{name} imports {other} of a later layer" for other in imported if layer_of(other) > layer_of(name)
        )
        if name.startswith("stores."):
            others = {other for other in imported if database_of(other) not in {None, database_of(name)}}
            yield from (f"{name} imports {other} of another database" for other in others)
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        yield f"circle: {' -> '.join(error.args[1])}"


def test_imports_point_one_way() -> None:
    """No file imports one of a later layer or of another database, none is in a circle, and all have a layer."""
    assert sorted(broken_rules(sources())) == []


@pytest.mark.parametrize(
    ("file", "line", "found"),
    [
        ("tree", "from chatkeep import store", "tree imports store of a later layer"),
        (
            "model",
            "def f():\n    import chatkeep.stores.memory.store",
            "model imports stores.memory.store of a later layer",
        ),
        (
            "stores.append",
            "from chatkeep.stores.memory import store",
            "stores.append imports stores.memory.store of another database",
        ),
        (
            "stores.sqlite.rows",
            "from chatkeep.stores.postgres.rows import anything",
            "stores.sqlite.rows imports stores.postgres.rows of another database",
        ),
        ("errors", "if TYPE_CHECKING:\n    from chatkeep.model import Message", "circle: "),
        ("stores.sqlite.rows", "from chatkeep.stores.sqlite import store", "circle: "),
    ],
)
def test_broken_imports_are_found(file: str, line: str, found: str) -> None:
    """The test above sees each kind of import that it forbids."""
    files = sources()
    files[file] += f"\n{line}\n"
    assert [rule for rule in broken_rules(files) if rule.startswith(found)]


def test_functions_and_files_are_short() -> None:
    """Of all functions half have at most 8 lines, and 95 % at most 30; no file has more than 600."""
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef)
    trees = [ast.parse(source) for source in sources().values()]
    lines = [
        (node.end_lineno or node.lineno) - node.lineno + 1
        for tree in trees
        for node in ast.walk(tree)
        if isinstance(node, kinds)
    ]
    assert statistics.median(lines) <= MEDIAN_LINES
    assert statistics.quantiles(lines, n=20)[-1] <= MOST_LINES
    assert {name: n for name, source in sources().items() if (n := len(source.splitlines())) > FILE_LINES} == {}


def test_the_public_names_are_the_declared_ones() -> None:
    """`from chatkeep import …` offers what __all__ says, sorted, and nothing else."""
    public = {
        name for name, value in vars(chatkeep).items() if not name.startswith("_") and not hasattr(value, "__path__")
    }
    modules_ = {name for name in public if type(vars(chatkeep)[name]).__name__ == "module"}
    assert sorted(chatkeep.__all__) == list(chatkeep.__all__)
    assert set(chatkeep.__all__) == public - modules_


def test_the_version_is_the_same_everywhere() -> None:
    """The version is the project's, the installed one, and that of the newest entry of the changelog."""
    (newest, *_) = re.findall(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text("utf-8"), re.MULTILINE)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    assert [newest, version("chatkeep"), project["version"]] == [chatkeep.__version__] * 3


def test_nothing_opens_sqlite_with_the_standard_library() -> None:
    """The package never imports sqlite3: see docs/decisions/0001-one-sqlite-library.md."""
    for name, source in sources().items():
        tree = ast.parse(source)
        found = [n for n in ast.walk(tree) if isinstance(n, ast.Import) and any(a.name == "sqlite3" for a in n.names)]
        assert not found, name


def test_only_the_settings_read_the_environment() -> None:
    """os.environ and os.getenv appear in one module of the package."""
    for name, source in sources().items():
        assert name == "settings" or not re.search(r"os\.environ|os\.getenv", source), name
