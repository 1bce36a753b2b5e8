"""The house: a room imports only from floors below it; light rooms stay light; nothing names one machine."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import nullius

ROOT = Path(nullius.__file__).parent
FLOOR = {"cli": 5, "web": 5, "feed": 4, "studies": 4, "lab": 3, "instruments": 2, "elicitation": 2, "training": 2}
FLOOR |= {"serving": 2, "agents": 2, "models": 1, "kernels": 0, "stimuli": 0}


def imported_rooms(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("nullius."):
            names.add(node.module.split(".")[1])
        elif isinstance(node, ast.ImportFrom) and node.module == "nullius":
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.Import):
            names |= {alias.name.split(".")[1] for alias in node.names if alias.name.startswith("nullius.")}
    return names & FLOOR.keys()


@pytest.mark.parametrize("path", sorted(ROOT.rglob("*.py")), ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_go_down(path):
    room = path.relative_to(ROOT).parts[0]
    for other in imported_rooms(path) - {room}:
        assert FLOOR[other] < FLOOR.get(room, 9), f"{path.relative_to(ROOT)} ({room}) imports {other}"


@pytest.mark.parametrize(
    ("statement", "heavy"),
    [
        ("import nullius", {"torch", "transformers", "scipy", "sqlalchemy", "matplotlib", "plotly"}),
        ("import nullius.cli.main", {"torch", "transformers", "scipy", "sqlalchemy", "matplotlib", "plotly"}),
        ("import nullius.feed.catalogue as c; c.papers()", {"torch", "transformers", "scipy", "sqlalchemy"}),
        ("import nullius.stimuli.capitals", {"torch", "transformers"}),
    ],
)
def test_light_rooms_stay_light(statement, heavy):
    code = f"import sys; {statement}; print(*({heavy!r} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


@pytest.mark.parametrize("path", sorted(ROOT.rglob("*.py")), ids=lambda path: str(path.relative_to(ROOT)))
def test_modules_are_short(path):
    limit = 280 if path.relative_to(ROOT).parts[0] == "studies" else 450
    assert len(path.read_text("utf-8").splitlines()) <= limit
