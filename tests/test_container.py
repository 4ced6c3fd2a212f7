"""Containerfile: what it names exists, what it installs is enough, and the server runs as the image lets it."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, distribution, packages_distributions
from pathlib import Path

import httpx
import pytest
from packaging.requirements import Requirement

from manihot.cli import VERBS
from test_export import exported, run  # noqa: F401
from test_returns import sound
from test_serve import Running, files, jpeg, running  # noqa: F401

HOME = Path(__file__).resolve().parents[1]
BASE = 130_000_000  # bytes of python:3.13-slim, unpacked (Debian 13 with CPython: 119 MB)
MOST = 700_000_000
KNOWN = {"FROM", "RUN", "COPY", "ENV", "USER", "EXPOSE", "STOPSIGNAL", "HEALTHCHECK", "ENTRYPOINT"}


def instructions() -> list[tuple[str, str]]:
    """The lines of the Containerfile: the word in front and the rest, continued lines joined."""
    text = (HOME / "Containerfile").read_text(encoding="utf-8")
    lines = re.sub(r"\\\n", " ", re.sub(r"^#.*\n", "", text, flags=re.M)).splitlines()
    return [(line.split(maxsplit=1)[0], line.split(maxsplit=1)[1].strip()) for line in lines if line.strip()]


def the(word: str) -> list[str]:
    return [rest for name, rest in instructions() if name == word]


def requirements() -> list[Requirement]:
    """What the image gets from the package index."""
    found = next(rest for rest in the("RUN") if "numpy" in rest)
    return [Requirement(word) for word in shlex.split(found) if re.search("[<>=]=", word)]


def test_it_is_one_that_a_linter_passes():
    assert {name for name, _ in instructions()} == KNOWN
    assert all(re.search(r":[\d.]+-slim( AS \w+)?$", rest) for rest in the("FROM"))
    assert len({rest.split()[0] for rest in the("FROM")}) == 1
    order = [name for name, _ in instructions()]
    assert the("USER") == ["10001"] and order.index("USER") > max(k for k, name in enumerate(order) if name == "RUN")
    assert "--uid 10001" in " ".join(the("RUN"))
    assert all("--no-cache-dir" in rest for rest in the("RUN") if " install --no" in rest)
    assert not re.search(r"curl|wget|sudo|apt|chmod 777|TOKEN|PASSWORD", (HOME / "Containerfile").read_text("utf-8"))
    assert [json.loads(rest)[0] for rest in the("ENTRYPOINT")] == ["manihot"]  # a list: no shell between signals and us
    assert "PYTHONDONTWRITEBYTECODE=1" in the("ENV")[0]


def test_each_file_and_command_that_it_names_exists():
    for rest in the("COPY"):
        *sources, target = rest.split()
        if sources[0].startswith("--from="):
            assert sources[0] == "--from=build" and "AS build" in the("FROM")[0]
            assert sources[1:] == [target] and any(f"venv --without-pip {target}" in one for one in the("RUN"))
        else:
            assert all((HOME / name).exists() for name in sources)
    about = tomllib.loads((HOME / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert any("README.md" in rest.split() and about["readme"] == "README.md" for rest in the("COPY"))
    entry = json.loads(the("ENTRYPOINT")[0])
    assert entry[0] in about["scripts"] and entry[1] in {verb.__name__ for verb in VERBS}
    said = subprocess.run([sys.executable, "-m", "manihot", entry[1], "--help"], capture_output=True, text=True)
    assert all(word in said.stdout for word in entry if word.startswith("--"))
    if sys.platform == "linux" and Path("/etc/debian_version").exists():
        commands = {part.split()[0] for rest in the("RUN") for part in rest.split("&&")}
        assert commands == {"python", "pip", "useradd", "install"}
        assert all(shutil.which(one) for one in commands)


def test_what_it_installs_are_our_dependencies():
    about = tomllib.loads((HOME / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    ours = {str(Requirement(one)) for one in [*about["dependencies"], *about["optional-dependencies"]["serve"]]}
    assert {str(one) for one in requirements()} <= ours


def closure() -> set[str]:
    """Names of the packages that the image gets, those that others ask for among them."""
    found: set[str] = set()
    todo = [(one.name, one.extras) for one in requirements()]
    while todo:
        name, extras = todo.pop()
        if (name := re.sub(r"[-_.]+", "-", name).lower()) in found:
            continue
        try:
            needed = distribution(name).requires or []
        except PackageNotFoundError:  # of another platform or Python
            continue
        found.add(name)
        for one in map(Requirement, needed):
            if one.marker is None or any(one.marker.evaluate({"extra": extra}) for extra in {*extras, ""}):
                todo.append((one.name, one.extras))
    return found


# Modules of other packages aren't there, and nothing can be written but below one folder.
WALLS = """
import errno, os, sys
class Wall:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {absent!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
def watch(event, args):
    if event == "open" and isinstance(args[0], str) and not args[0].startswith(("/dev/", "/proc/")):
        mode, flags = args[1:3]
        if flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT) and not os.path.abspath(args[0]).startswith({folder!r}):
            raise OSError(errno.EROFS, "read-only", args[0])
    if event in ("os.mkdir", "os.rename", "os.remove") and not os.path.abspath(args[0]).startswith({folder!r}):
        raise OSError(errno.EROFS, "read-only", args[0])
sys.meta_path.insert(0, Wall())
sys.addaudithook(watch)
"""


@pytest.fixture
def walled(
    exported: Path,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Running]:
    """A server with the image's packages alone, on a file system that is read-only but for the returns."""
    (tmp_path / "walls").mkdir()
    (tmp_path / "returns").mkdir()
    there = closure()
    names = packages_distributions()
    absent = {
        top
        for top, owners in names.items()
        if not {re.sub(r"[-_.]+", "-", one).lower() for one in owners} & {*there, "manihot", "pip", "setuptools"}
    }
    assert {"scipy", "sklearn", "pyarrow", "matplotlib", "onnx"} <= absent
    text = WALLS.format(absent=absent, folder=str(tmp_path / "returns"))
    (tmp_path / "walls/sitecustomize.py").write_text(text, encoding="utf-8")
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path / 'walls'}:{HOME / 'src'}")
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    with running(exported, tmp_path / "log", "--returns", str(tmp_path / "returns")) as server:
        yield server


@pytest.mark.skipif(sys.platform != "linux", reason="containers are of Linux")
def test_the_server_runs_with_what_the_image_has(walled: Running, files: list[Path], tmp_path: Path):  # noqa: F811
    answer = walled.client.post("/v1/classify", content=jpeg(files))
    assert answer.status_code == 200, answer.text
    assert walled.client.post("/v1/classify", content=b"x" * 100).status_code == 415
    body = sound(tmp_path / "returns.zip").read_bytes()
    assert walled.client.post("/v1/returns", content=body).status_code == 201
    assert all(walled.client.get(path).status_code == 200 for path in ("/", "/metrics", "/v2/models/manihot"))
    command = json.loads(the("HEALTHCHECK")[0].partition("CMD")[2])
    words = [sys.executable, *command[1:-1], command[-1].replace(":8000/", f":{walled.port}/")]
    assert command[0] == "python" and words[-1] != command[-1]
    assert subprocess.run(words, timeout=30).returncode == 0
    assert walled.end() == 0 and "Traceback" not in walled.said()
    assert subprocess.run(words, capture_output=True, timeout=30).returncode != 0
    with pytest.raises(httpx.TransportError):
        httpx.get(f"http://127.0.0.1:{walled.port}/")


@pytest.mark.slow
def test_the_image_is_below_700_megabytes(tmp_path: Path):
    home = tmp_path / "image"
    words = [sys.executable, "-m", "pip", "install", "--quiet", "--no-cache-dir", "--target", str(home)]
    done = subprocess.run([*words, *map(str, requirements())], capture_output=True, text=True, timeout=600)
    if done.returncode:
        pytest.skip(f"pip install failed: {done.stderr[-300:]}")
    subprocess.run([*words, "--no-deps", str(HOME)], check=True, capture_output=True, timeout=600)
    size = sum(path.lstat().st_size for path in home.rglob("*"))
    assert 100_000_000 < size < MOST - BASE, size
