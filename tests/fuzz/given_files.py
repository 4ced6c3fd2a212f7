"""One of each kind of file that people, phones, jobs and exports give to manihot: seeds to damage."""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import onnx
import pandas as pd
from onnx import TensorProto, helper
from PIL import Image
from saved_files import CLASSES, IDS, Kind, N, predictions, probs

from manihot.demo.make import _is_finished
from manihot.ensemble.diversity import cheaper_blends
from manihot.ensemble.second_level import Combination, Part
from manihot.export.bundle import Bundle
from manihot.infer.quality import QualityGate
from manihot.networks.card import KEY, ModelCard
from manihot.networks.runner import LinearHead, OnnxRunner, read_metadata
from manihot.photos.aliases import load_aliases
from manihot.photos.preprocess import Preprocess
from manihot.photos.quality import QualityLimits, fit_quality, measure_quality
from manihot.photos.scan import scan
from manihot.records.files import save_json, write_atomic
from manihot.records.readers import read_features
from manihot.records.summaries import read_burst_effect, read_notes, read_stage_entry
from manihot.report.clean_page import _read
from manihot.review.answers import COLUMNS, Answer
from manihot.review.merge import read_answers
from manihot.settings import View
from manihot.settings.groups import Model
from manihot.trust.costs import load_costs
from manihot.trust.probing import read_shares

REVIEW = "0" * 16
SIDE = 8


def card() -> ModelCard:
    """Of a network of three classes."""
    return ModelCard(CLASSES, Preprocess((SIDE, SIDE)), (View(),), Model(), {"member": "main", "fold": 0}, (4, 7, 9))


def network(path: Path, exported: bool = False) -> None:
    """A network of manihot that answers by the mean colour; exported: with all outputs of an exported model."""
    nodes = [
        helper.make_node("Cast", ["photos"], ["values"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["values"], ["embeddings"], axes=[1, 2], keepdims=0),
        helper.make_node("MatMul", ["embeddings", "weight"], ["logits"]),
    ]
    outputs = {"embeddings": (TensorProto.FLOAT, ["n", 3]), "logits": (TensorProto.FLOAT, ["n", 3])}
    if exported:
        nodes += [
            helper.make_node("Softmax", ["logits"], ["probabilities"]),
            helper.make_node("Cast", ["probabilities"], ["held"], to=TensorProto.UINT8),
            helper.make_node("ReduceMax", ["logits"], ["strangeness"], axes=[1], keepdims=0),
        ]
        outputs |= {"probabilities": (TensorProto.FLOAT, ["n", 3]), "held": (TensorProto.UINT8, ["n", 3])}
        outputs |= {"strangeness": (TensorProto.FLOAT, ["n"])}
    weight = helper.make_tensor("weight", TensorProto.FLOAT, [3, 3], (np.eye(3) / 100).ravel())
    photos = helper.make_tensor_value_info("photos", TensorProto.UINT8, ["n", "height", "width", 3])
    given = [helper.make_tensor_value_info(name, *kind) for name, kind in outputs.items()]
    graph = helper.make_graph(nodes, "tiny", [photos], given, [weight])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    helper.set_model_props(model, {KEY: card().to_text()})
    onnx.save(model, str(path))


def _use_network(path: Path) -> object:
    ModelCard.from_text(read_metadata(path).get(KEY), path)
    return OnnxRunner(path, threads=1)(np.zeros((1, SIDE, SIDE, 3), np.uint8))


def _use_head(path: Path) -> object:
    ModelCard.from_text(read_metadata(path).get(KEY), path)
    found = LinearHead.load(path)
    return found.logits(np.zeros((1, found.weight.shape[1]), np.float32))


def _limits() -> QualityLimits:
    return fit_quality([measure_quality(np.full((64, 64, 3), k, np.uint8)) for k in range(200)])


def _exported(path: Path) -> None:
    model = path.with_name("model.onnx")
    network(model, exported=True)
    about = {
        "format": 2,
        "sha256": hashlib.sha256(model.read_bytes()).hexdigest(),
        "classes": list(CLASSES),
        "numbers": [4, 7, 9],
        "preprocess": Preprocess((SIDE, SIDE)).to_json(),
        "sets": None,
        "unknown": {"limit": 0.5, "false_rejection": 0.05},
        "quality": _limits().to_json(),
    }
    save_json(path, about)


def _use_exported(path: Path) -> object:
    found = Bundle.load(path.parent, threads=1)
    height, width = found.preprocess.size
    return found.classify([np.zeros((64, 64, 3), np.uint8)]) if height * width <= 10**6 else None


def _photo(number: int) -> bytes:
    pixels = np.random.default_rng(number).integers(0, 256, (40, 56, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG")
    return file.getvalue()


def _returned(number: int) -> dict[str, object]:
    content = _photo(number)
    return {
        "file": f"photos/{number}.jpg",
        "sha256": hashlib.sha256(content).hexdigest(),
        "bytes": len(content),
        "taken": "2026-11-30T09:00:00.000Z",
        "plant": f"p{number // 2}",
        "probabilities": [0.2, 0.7, 0.1],
        "held": ["scab"],
        "answer": "scab",
        "faults": [],
        "strangeness": 0.4,
        "correction": {"label": "rust", "who": "Amina", "when": "2026-11-30T10:00:00Z"} if number else None,
        "place": {"latitude": -6.8, "longitude": 39.3, "accuracy": 12.0},
    }


def zipped(index: bytes) -> bytes:
    """A returns.zip of three photographs with this index."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr("returns.json", index)
        for number in range(3):
            archive.writestr(f"photos/{number}.jpg", _photo(number))
    return out.getvalue()


def _index() -> dict[str, object]:
    about = {"format": "manihot-returns", "version": 1, "made": "2026-12-01T08:00:00Z", "model": {"sha256": "0" * 64}}
    return {**about, "classes": list(CLASSES), "photographs": [_returned(number) for number in range(3)]}


def _use_index(path: Path) -> object:
    archive = path.with_name("returns.zip")
    archive.write_bytes(zipped(path.read_bytes()))
    return scan(archive, out=path.parent / "run")


def _review(path: Path) -> None:
    rows = [
        (IDS[0], "relabel", "rust", "scab", "1", "seen, twice", "class", "ana", "2026-12-01T08:00:00.000Z", "3.2"),
        (IDS[1], "drop", "rust", "", "1", "", "drop", "ana", "2026-12-01T08:00:04.000Z", "1.0"),
        (IDS[2], "keep", "rust", "", "1", "", "unsure", "ana", "2026-12-01T08:00:09.000Z", "9.1"),
    ]
    table = pd.DataFrame([(*row, "photo original", "1", "runs/a") for row in rows], columns=list(COLUMNS))
    table.to_csv(path, index=False)


def _answers(path: Path) -> None:
    from manihot.review.database import Database, sqlite_url

    database = Database(sqlite_url(path), REVIEW)
    database.invite(["ana", "ben"])
    values = {"verdict": "class", "label": "rust", "reviewer": "ana", "at": "2026-12-01T08:00:00Z", "ms": 3210}
    lines = [
        Answer.model_validate({**values, "key": f"{k:032x}", "image_id": IDS[k], "seen": ("photo",), "review": REVIEW})
        for k in range(5)
    ]
    database.append(lines)
    with database.handing_out() as hand:
        hand.hand("ana", list(IDS[:3]))
    database.close()
    for more in ("-wal", "-shm"):
        path.with_name(path.name + more).unlink(missing_ok=True)


def _use_answers(path: Path) -> object:
    from manihot.review.database import Database, sqlite_url

    for more in ("-wal", "-shm"):
        path.with_name(path.name + more).unlink(missing_ok=True)
    database = Database(sqlite_url(path), REVIEW)
    try:
        with database.handing_out() as hand:
            held = hand.held()
        return database.people(), database.who("x"), database.answers(), database.handed_to("ana"), held
    finally:
        database.close()


def _trees(path: Path) -> None:
    """As LightGBM's are kept: three classes, two rounds, four splits each."""
    shape, rng = (6, 4), np.random.default_rng(7)
    left, right = np.array([1, ~0, 3, ~2]), np.array([2, ~1, ~3, ~4])
    arrays = {
        "centre": np.zeros(6),
        "spread": np.ones(6),
        "present": np.arange(3),
        "feature": rng.integers(0, 6, shape),
        "threshold": rng.random(shape),
        "left": np.tile(left, (6, 1)),
        "right": np.tile(right, (6, 1)),
        "leaf": rng.normal(size=(6, 5)),
    }
    Combination(("a", "b"), CLASSES, ((Part("trees", arrays),),)).save(path)


def _use_trees(path: Path) -> object:
    found = Combination.load(path)
    return found(np.stack([probs()] * len(found.members))) if len(found.classes) == 3 else None


def _costs_of_members(path: Path) -> None:
    write_atomic(path, "member,latency,download\na,0.5,1000000\nb,0.1,20000\n")


def _use_costs_of_members(path: Path) -> object:
    members = [path.with_name(f"{name}.oof.parquet") for name in "ab"]
    for member in members:
        if not member.exists():
            predictions(member)
    return cheaper_blends(members, path, path.parent / "out")


def _json(value: object) -> Callable[[Path], object]:
    return lambda path: save_json(path, value)


def _text(*lines: str) -> Callable[[Path], object]:
    return lambda path: write_atomic(path, "\n".join(lines) + "\n")


STAGE = {"status": "done", "inputs": "ab", "started": 1.5, "seconds": 2.5, "outputs": {"members/main/fold0": "cd"}}
DRAWN = {"format": 1, "photos": 80, "seed": 0, "wrong": 0.1, "finished": True}

GIVEN: dict[str, Kind] = {
    "network": Kind("network.onnx", network, _use_network),
    "head": Kind(
        "head.safetensors",
        lambda path: LinearHead(np.zeros((3, 4), np.float32), np.zeros(3, np.float32)).save(path, card().to_text()),
        _use_head,
    ),
    "exported model": Kind("model.json", _exported, _use_exported),
    "exported network": Kind(
        "model.onnx", lambda path: _exported(path.with_name("model.json")), lambda path: _use_exported(path)
    ),
    "returns": Kind(
        "returns.zip",
        lambda path: path.write_bytes(zipped(json.dumps(_index()).encode())),
        lambda path: scan(path, out=path.parent / "run"),
    ),
    "index of returns": Kind("returns.json", _json(_index()), _use_index),
    "decisions of a review": Kind("ana.csv", _review, read_answers),
    "decisions of a cleaning": Kind("decisions.csv", _review, _read),
    "answers of a team": Kind("answers.sqlite", _answers, _use_answers),
    "aliases": Kind("aliases.yaml", _text("cbb: rust", "'leaf spot, brown': scab", "none: healthy ü"), load_aliases),
    "notes": Kind("notes.json", _json({"public": 0.89, "private": None, "text": "a, b"}), read_notes),
    "job": Kind("job.json", _json(STAGE), read_stage_entry),
    "effect of bursts": Kind("bursts.json", _json({"sentence": "no"}), read_burst_effect),
    "quality gate": Kind(
        "trust/quality.json",
        lambda path: QualityGate("main", _limits()).save(path.parent),
        lambda path: QualityGate.load_if(path.parent),
    ),
    "demo": Kind("demo.json", _json(DRAWN), lambda path: _is_finished(path.parent, {"seed": 0})),
    "trees": Kind("combination.npz", _trees, _use_trees),
    "features": Kind(
        "00000000.npy", lambda path: np.save(path, np.zeros((N, 2, 8), np.float32)), lambda path: read_features([path])
    ),
    "shares": Kind(
        "shares.csv",
        _text("class,share", "rust,0.2", "scab,0.3", "healthy ü,0.5"),
        lambda path: read_shares(path, CLASSES),
    ),
    "costs": Kind(
        "costs.csv",
        _text("class,rust,scab,healthy ü,ask", "rust,0,1,2,1", "scab,1,0,3,1", "healthy ü,1,1,0,1"),
        lambda path: load_costs(path, CLASSES),
    ),
    "costs of members": Kind("costs.csv", _costs_of_members, _use_costs_of_members),
}
if find_spec("sqlalchemy") is None:  # the core alone
    del GIVEN["answers of a team"]
