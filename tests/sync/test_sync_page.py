"""The examples of docs/sync.md."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[2] / "docs" / "sync.md"
SCRIPT, FLASK, STREAMLIT, NOTEBOOK = re.findall(r"```python\n(.*?)```", PAGE.read_text("utf-8"), re.DOTALL)

SMALL_FLASK = '''
import json, sys, types
from uuid import UUID

class Flask:
    """As much of Flask as the example uses, which is not installed with chatkeep."""

    def __init__(self, name):
        self.routes = {}

    def route(self, method, path):
        return lambda view: self.routes.setdefault((method, path), view)

    def post(self, path):
        return self.route("POST", path)

    def get(self, path):
        return self.route("GET", path)

request = types.SimpleNamespace(json={"text": "How hot?"})
jsonify = lambda *values, **fields: json.loads(json.dumps(*values or [fields], default=str))
sys.modules["flask"] = types.SimpleNamespace(Flask=Flask, request=request, jsonify=jsonify)
'''

CALL_FLASK = """
path = "/conversations/<uuid:conversation_id>/messages"
made = UUID(app.routes["POST", "/conversations"]()["id"])
print(app.routes["POST", path](made)["seq"], app.routes["GET", path](made))
store.close()
"""

SMALL_STREAMLIT = """
import sys, types

said = types.SimpleNamespace(write=print)
sys.modules["streamlit"] = types.SimpleNamespace(
    cache_resource=lambda function: function, chat_input=lambda _: "How hot?", chat_message=lambda role: said
)
"""

IN_A_LOOP = f"""
import ast, asyncio

async def cells():
    body = ast.parse({NOTEBOOK!r}).body
    names = {{}}
    exec(compile(ast.Module(body[:-1], []), "cell", "exec"), names)
    print(eval(compile(ast.Expression(body[-1].value), "cell", "eval"), names))

asyncio.run(cells())
"""

PROGRAMS = {
    "script": (SCRIPT, "1 user How hot should tea be?\n"),
    "flask": (SMALL_FLASK + FLASK + CALL_FLASK, "1 ['How hot?']\n"),
    "streamlit": (SMALL_STREAMLIT + STREAMLIT, "How hot?\n"),
    "notebook": (IN_A_LOOP, "How hot should tea be?\n"),
}


@pytest.mark.parametrize(
    "name", [name if name == "script" else pytest.param(name, marks=pytest.mark.long) for name in PROGRAMS]
)
def test_the_example_runs(tmp_path: Path, name: str) -> None:
    """It stores a message and reads it, and says nothing at its end."""
    program, expected = PROGRAMS[name]
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, expected, "")
