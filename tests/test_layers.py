"""Lower rooms never import higher ones, no imports run in circles, and only the room `train` imports torch."""

from __future__ import annotations

import ast
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import manihot

SOURCE = Path(manihot.__file__).parent
LEVELS = {
    "errors": 0,
    "extras": 0,
    "progress": 0,
    "settings": 0,
    "records": 1,
    "metrics": 1,
    "photos": 2,
    "audit": 2,
    "ensemble": 2,
    "trust": 2,
    "demo": 2,
    "augment": 3,
    "networks": 3,
    "infer": 4,
    "members": 5,
    "quick": 5,
    "report": 5,
    "train": 6,
    "export": 6,
    "review": 6,
    "serve": 7,
    "engines": 7,
    "pipeline": 8,
    "scale": 8,
    "suites": 8,
    "verbs": 9,
    "cli": 10,
    "__main__": 10,
}
ABOVE_TRAIN = ("train", "engines", "pipeline", "suites", "verbs", "cli")


def room(module: str) -> str:
    return module.split(".")[1] if "." in module else ""


def imports(path: Path) -> set[str]:
    """Everything that a file imports, inside functions too; not what only the type checker reads."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            node.body = []
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{name.name}" for name in node.names)}
        elif isinstance(node, ast.Import):
            found |= {name.name for name in node.names}
    return found


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


def test_imports_never_run_in_circles_inside_functions_neither():
    known = modules()
    graph = {name: {o for o in imports(path) if o in known and o != name} for name, path in known.items()}
    list(TopologicalSorter(graph).static_order())  # raises CycleError


def test_a_circle_through_a_function_is_seen(tmp_path: Path):
    (tmp_path / "a.py").write_text("def f():\n    from manihot.ensemble import stack\n", encoding="utf-8")
    (tmp_path / "b.py").write_text("if TYPE_CHECKING:\n    import torch\nelse:\n    import timm\n", encoding="utf-8")
    assert imports(tmp_path / "a.py") == {"manihot.ensemble", "manihot.ensemble.stack"}
    assert imports(tmp_path / "b.py") == {"timm"}


def importers(*packages: str) -> set[str]:
    """Modules, without `manihot.`, that import one of the packages or what is below them."""
    return {
        name.removeprefix("manihot.")
        for name, path in modules().items()
        if any(f"{other}.".startswith(f"{package}.") for other in imports(path) for package in packages)
    }


def test_only_the_room_train_imports_torch():
    found = importers("torch", "timm", "torchvision", "onnxscript")
    assert not {name for name in found if not name.startswith("train.")}


def test_only_the_rooms_above_import_the_room_train():
    assert not {name for name in importers("manihot.train") if name.split(".")[0] not in ABOVE_TRAIN}


def test_help_starts_without_torch():
    code = "import sys, manihot, manihot.cli, manihot.settings; print('torch' in sys.modules)"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "False"
