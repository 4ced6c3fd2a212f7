"""Pages of the documentation site that are not written by hand: the README, and references made from the code."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
AT_THE_TOP = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "security.md",
    "CODE_OF_CONDUCT.md": "code-of-conduct.md",
    "CHANGELOG.md": "changelog.md",
}


def on_files(files: Files, config: MkDocsConfig, **_: Any) -> Files:
    """Add the pages that stand elsewhere or are made."""
    for name, page in AT_THE_TOP.items():
        files.append(File.generated(config, page, content=_moved((ROOT / name).read_text(encoding="utf-8"))))
    files.append(File.generated(config, "reference/cli.md", content=command_line()))
    files.append(File.generated(config, "reference/api.md", content=python_api()))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Links of a page in docs/ to what stands above it."""
    return re.sub(r"\]\(\.\./([A-Z_]+\.md)", lambda m: f"]({AT_THE_TOP.get(m[1], m[1])}", markdown)


def _moved(text: str) -> str:
    text = re.sub(r"""(\]\(|src=")docs/""", r"\1", text)
    for name, page in AT_THE_TOP.items():
        text = text.replace(f"]({name}", f"]({page}")
    return re.sub(r"\]\(LICENSE\)", "](https://www.apache.org/licenses/LICENSE-2.0)", text)


def command_line() -> str:
    """Every command with its options, from the command line's own help."""
    from manihot.cli import app

    return str(app.generate_docs(output_format="markdown"))


def python_api() -> str:
    """Every public name, with its signature and docstring."""
    import manihot

    lines = ["# Python, every function", ""]
    for name in manihot.__all__:
        value = getattr(manihot, name)
        if hasattr(value, "__module__"):
            lines.append(f"::: {value.__module__}.{value.__name__}\n")
    return "\n".join(lines)
