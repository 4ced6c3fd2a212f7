"""The exported model that is served."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from manihot.networks.runner import OnnxRunner, Outputs, choose_device
from manihot.photos.preprocess import Preprocess
from manihot.photos.quality import Measure
from manihot.trust.conformal import ConformalSets

KINDS = {"tensor(float)": "FP32", "tensor(double)": "FP64", "tensor(uint8)": "UINT8", "tensor(int64)": "INT64"}


class Served:
    def __init__(self, folder: Path, device: str = "auto") -> None:
        about = json.loads((folder / "model.json").read_text(encoding="utf-8"))
        small = folder / "model.int8.onnx"
        self.about: dict[str, Any] = about["int8"] if small.is_file() else about
        path = small if small.is_file() else folder / "model.onnx"
        self.runner = OnnxRunner(path, device=choose_device(device))
        self.preprocess = Preprocess.from_json(self.about["preprocess"])
        self.name = str(self.about["member"])
        self.classes = tuple(self.about["classes"])
        self.sets = ConformalSets.from_json(self.about["sets"]) if self.about["sets"] else None

    def outputs(self) -> list[tuple[str, str, list[int]]]:
        """Name, datatype and shape of every output of the network, -1 for what isn't fixed."""
        kinds = {one.name: one for one in self.runner.session.get_outputs()}
        return [
            (name, KINDS[kinds[name].type], [edge if isinstance(edge, int) else -1 for edge in kinds[name].shape])
            for name in self.runner.outputs
        ]

    def judge(self, row: Outputs, values: dict[Measure, float]) -> dict[str, Any]:
        raw = np.exp(row["logits"].astype(np.float64))[None]
        held = () if self.sets is None else np.flatnonzero(self.sets.predict_sets(raw / raw.sum(), np.zeros(1))[0])
        return {
            "probabilities": {n: round(float(p), 6) for n, p in zip(self.classes, row["probabilities"])},
            "set": [self.classes[k] for k in held],
            "quality": values,
        }
