"""Lower rooms never import higher ones, there is no circle, and the light rooms don't import torch."""

from __future__ import annotations

import ast
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import manihot

SOURCE = Path(manihot.__file__).parent
LEVELS = {
    "errors": 0, "progress": 0, "settings": 0,
    "records": 1, "metrics": 1,
    "photos": 2, "audit": 2, "ensemble": 2, "trust": 2, "demo": 2,
    "augment": 3,
    "infer": 5,
    "train": 5, "members": 5, "quick": 5,
    "report": 6,
    "pipeline": 7,
    "suites": 7,
    "cli": 8, "__main__": 8,
}  # fmt: skip
LIGHT = (
    "errors",
    "progress",
    "settings",
    "records",
    "metrics",
    "photos",
    "audit",
    "ensemble",
    "trust",
    "report",
    "suites",
    "cli",
)


def room(module: str) -> str:
    return module.split(".")[1] if "." in module else ""


def imports(path: Path, top_level_only: bool = False) -> set[str]:
    """Modules of manihot that a file imports, and torch."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    nodes = tree.body if top_level_only else list(ast.walk(tree))
    found: set[str] = set()
    for node in nodes:
        if isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
            if node.module == "manihot":
                found |= {f"manihot.{name.name}" for name in node.names}
        elif isinstance(node, ast.Import):
            found |= {name.name for name in node.names}
    return {name for name in found if name.startswith("manihot.") or name.split(".")[0] in ("torch", "timm")}


def modules() -> dict[str, Path]:
    return {
        "manihot." + ".".join(path.relative_to(SOURCE).with_suffix("").parts).removesuffix(".__init__"): path
        for path in SOURCE.rglob("*.py")
        if path.parent != SOURCE or path.name != "__init__.py"
    }


def test_every_room_has_a_level():
    assert {room(name) for name in modules()} - {"recipes"} == set(LEVELS)


def test_lower_rooms_never_import_higher_ones():
    wrong = [
        f"{name} imports {other}"
        for name, path in modules().items()
        for other in imports(path)
        if other.startswith("manihot.") and room(other) in LEVELS and LEVELS[room(other)] > LEVELS[room(name)]
    ]
    assert not wrong


def test_imports_never_run_in_circles():
    known = modules()
    graph = {
        name: {o for o in imports(path, top_level_only=True) if o in known and o != name}
        for name, path in known.items()
    }
    list(TopologicalSorter(graph).static_order())  # raises CycleError


def test_light_rooms_do_not_import_torch():
    heavy = [
        name for name, path in modules().items()
        if room(name) in LIGHT and any(o.split(".")[0] in ("torch", "timm") for o in imports(path, top_level_only=True))
        and name != "manihot.report.show_augment"
    ]  # fmt: skip
    assert not heavy


def test_help_starts_without_torch():
    code = "import sys, manihot, manihot.cli, manihot.settings; print('torch' in sys.modules)"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "False"
