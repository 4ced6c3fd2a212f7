"""Files of a run as they may leave this machine: no absolute path, home folder, user or host in them.

A path inside a folder that the run knows (its photographs, itself) stays relative to it; of any other the last part is
left. Networks are rewritten only where they name a path.
"""

from __future__ import annotations

import io
import json
import re
from dataclasses import replace
from pathlib import Path, PurePosixPath, PureWindowsPath
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from manihot.errors import RunFolderError
from manihot.records.manifest import Manifest
from manihot.records.readers import read_json
from manihot.records.run_folder import RunFolder

# a path from the root, alone or within a sentence: /a/b, ~/b, C:\a, \\host\a, file:///a
ABSOLUTE = re.compile(r"""(?<![\w.)\]}/\\~:-])(?:file:/)?(?:~?/|[A-Za-z]:[\\/]|\\\\)(?=[^\s/\\])[^\s"'<>|,;]*""")


class Relative:
    """`relative(file)` gives a file's content without places of this machine, None where it can stay as it is."""

    def __init__(self, run: RunFolder) -> None:
        self.run = run
        places = [Path.cwd(), Path.home(), run.path, run.path.resolve(), run.path.resolve().parent]
        self.places = sorted({str(place) for place in places if len(place.parts) > 1}, key=len, reverse=True)

    def __call__(self, file: Path) -> bytes | None:
        """The content to share."""
        if file in (self.run.manifest, self.run.folds):
            return self._manifest(file)
        if file.suffix == ".json":
            value = read_json(file)
            plain = self._value(value)
            if file == self.run.record_file and not isinstance(value, dict):
                raise RunFolderError(
                    f"{file}: not the record of a run", "restore it from a copy, or run the same command again"
                )
            if file == self.run.record_file and isinstance(plain.get("command"), list):
                plain["command"] = ["manihot", *plain["command"][1:]]
            return None if plain == value else (json.dumps(plain, indent=1, ensure_ascii=False) + "\n").encode()
        kinds = {".safetensors": self._safetensors, ".onnx": self._onnx, ".npz": self._npz, ".parquet": self._parquet}
        if file.suffix in kinds:
            return kinds[file.suffix](file)
        if file.suffix in (".csv", ".jsonl"):
            text = file.read_text(encoding="utf-8")
            plain_text = self.text(text)
            return None if plain_text == text else plain_text.encode()
        return None

    def text(self, text: str) -> str:
        """Text whose absolute paths are cut down to their last part."""
        whole = _last_part(text)
        if whole is not None:
            return whole
        for place in self.places:
            text = re.sub(re.escape(place) + r"(?=[\\/]|\b)[\\/]?", "", text)
        return ABSOLUTE.sub(lambda found: _last_part(found[0]) or found[0], text)

    def _value(self, value: Any) -> Any:
        if isinstance(value, str):
            return self.text(value)
        if isinstance(value, list):
            return [self._value(one) for one in value]
        if isinstance(value, dict):
            return {self.text(key): self._value(one) for key, one in value.items()}
        return value

    def _manifest(self, file: Path) -> bytes:
        """The manifest with its root as the place where it is read; a photograph outside the root keeps its name."""
        manifest = Manifest.load(file)
        paths = [_last_part(path) or path for path in manifest.table["path"]]
        plain = replace(manifest, table=manifest.table.assign(path=paths), root=Path())
        with TemporaryDirectory(prefix="manihot-") as folder:
            plain.save(Path(folder) / file.name)
            return self._parquet(Path(folder) / file.name) or (Path(folder) / file.name).read_bytes()

    def _parquet(self, file: Path) -> bytes | None:
        table = pq.read_table(file)
        plain = table
        for at, field in enumerate(table.schema):
            if pa.types.is_string(field.type) or pa.types.is_large_string(field.type):
                values = table.column(at).to_pylist()
                cut = [None if value is None else self.text(value) for value in values]
                if cut != values:
                    plain = plain.set_column(at, field, pa.array(cut, field.type))
        known = table.schema.metadata or {}
        about = {key: self._json_text(value.decode("utf-8", "replace")).encode() for key, value in known.items()}
        if plain is table and about == known:
            return None
        out = io.BytesIO()
        pq.write_table(plain.replace_schema_metadata(about), out)
        return out.getvalue()

    def _safetensors(self, file: Path) -> bytes | None:
        from safetensors import safe_open
        from safetensors.numpy import save

        with safe_open(file, framework="np") as opened:
            about = opened.metadata() or {}
            plain = {key: self._json_text(value) for key, value in about.items()}
            if plain == about:
                return None
            return save({name: opened.get_tensor(name) for name in opened.keys()}, plain)  # noqa: SIM118

    def _json_text(self, text: str) -> str:
        """Text that may be JSON, whose strings are treated one by one then."""
        try:
            value = json.loads(text)
        except (ValueError, RecursionError):
            return self.text(text)
        plain = self._value(value)
        return text if plain == value else json.dumps(plain, ensure_ascii=False)

    def _npz(self, file: Path) -> bytes | None:
        with np.load(file, allow_pickle=False) as opened:
            arrays = {name: opened[name] for name in opened.files}
        plain = {
            name: np.array(self._json_text(str(array))) if array.dtype.kind == "U" and array.ndim == 0 else array
            for name, array in arrays.items()
        }
        if all(np.array_equal(plain[name], array) for name, array in arrays.items() if array.dtype.kind == "U"):
            return None
        out = io.BytesIO()
        np.savez_compressed(out, **plain)  # type: ignore[arg-type]
        return out.getvalue()

    def _onnx(self, file: Path) -> bytes | None:
        """The graph without what an exporter notes of its own source files."""
        import onnx

        model = onnx.load(file, load_external_data=False)
        before = model.SerializeToString(deterministic=True)
        model.doc_string = ""
        for prop in model.metadata_props:
            prop.value = self._json_text(prop.value)
        for graph in [model.graph, *model.functions]:
            graph.doc_string = ""
            for name in ("node", "value_info", "input", "output", "initializer"):
                for part in getattr(graph, name, ()):
                    if isinstance(part, str):
                        continue
                    part.doc_string = ""
                    if hasattr(part, "metadata_props"):
                        del part.metadata_props[:]
        after = model.SerializeToString(deterministic=True)
        return None if after == before else after


def _last_part(text: str) -> str | None:
    """The last part of a text that is one absolute path of two parts or more, '.' for a home; None for other texts."""
    if "\n" in text:
        return None
    path = text.removeprefix("file://")
    posix, windows = PurePosixPath(path), PureWindowsPath(path)
    of_posix, of_windows = posix.is_absolute() and len(posix.parts) > 2, windows.is_absolute() and ":" in path[1:2]
    if of_posix or of_windows or path.startswith(("~/", "~\\", "\\\\")):
        return "." if windows.name == Path.home().name else windows.name  # which is the user's
    return None
