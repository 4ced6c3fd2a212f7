"""The parts of the audit, each measured in a process of its own on photographs that are really there. Used by audit.py.

FOLDER/photos_N holds N photographs, first drawn, then scanned, looked at and embedded; each part reads what the ones
before it left in FOLDER/N. `seconds` are those of the clock, `processor` those of all processes together.
"""

from __future__ import annotations

import resource
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from multiprocessing import active_children, get_context
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pandas as pd

from manihot.audit.duplicates import find_duplicates, with_groups
from manihot.audit.hashes import Thumbnails, make_thumbnails
from manihot.audit.label_errors import find_label_errors
from manihot.audit.lookalikes import find_lookalikes
from manihot.audit.measurements import COMMON
from manihot.audit.neighbours import components_within
from manihot.demo.make import make_demo
from manihot.photos.decode import decode_photo, read_photo
from manihot.photos.scan import scan
from manihot.progress import track
from manihot.records.manifest import Manifest

CORES = 2
BASES = 200  # drawn photographs that all others are made of
COPY_EVERY = 100  # one photograph in so many is a mirrored copy of another
AT_ONCE = 256  # files held in memory while the floor is measured
SHARES = (0.05, 0.1, 0.11, 0.13, 0.61)  # five classes as uneven as cassava's
EPS = 1.0  # of made embeddings: near copies lie .7 apart, others several


@contextmanager
def clocked(took: dict[str, Any]) -> Iterator[None]:
    """Adds `seconds` (clock) and `processor` (all processes) to `took`; none of them may wait for more work by then."""
    before, start = _processor(), time.perf_counter()
    yield
    took["seconds"] = took.get("seconds", 0.0) + time.perf_counter() - start
    for child in active_children():  # the processor's time of a process counts when it has ended
        child.join()
    took["processor"] = took.get("processor", 0.0) + _processor() - before


def _processor() -> float:
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


# ---------------------------------------------------------------------------------------------- photographs


def draw_photos(folder: Path, count: int) -> None:
    """FOLDER/photos_COUNT: photographs of 800 x 600, about 110 KB each; those that are there stay."""
    bases = min(BASES, max(30, count // 2))
    make_demo(folder / f"base_{bases}", bases, seed=7, workers=CORES)
    (folder / f"photos_{count}").mkdir(exist_ok=True)
    draw = partial(_draw, folder, bases, count)
    with ProcessPoolExecutor(CORES, get_context("spawn")) as pool:
        for _ in track(pool.map(draw, range(count), chunksize=16), "Drawing photographs", total=count):
            pass


_BASE: list[np.ndarray] = []


def _draw(folder: Path, bases: int, count: int, k: int) -> None:
    path = folder / f"photos_{count}" / f"{k:05d}.jpg"
    if path.exists():
        return
    cv2.setNumThreads(1)
    if not _BASE:
        found = [cv2.imread(str(p)) for p in sorted((folder / f"base_{bases}" / "train_images").glob("*.jpg"))]
        _BASE.extend(picture for picture in found if picture is not None)
    copied = k % COPY_EVERY == COPY_EVERY - 1
    picture = make_photo(k - COPY_EVERY // 2 if copied else k, _BASE)
    picture = picture[:, ::-1] if copied else picture
    temporary = path.with_suffix(".part")
    quality = [cv2.IMWRITE_JPEG_QUALITY, 80 if copied else 95]
    temporary.write_bytes(cv2.imencode(".jpg", np.ascontiguousarray(picture), quality)[1].tobytes())
    temporary.replace(path)


def make_photo(k: int, base: list[np.ndarray]) -> np.ndarray:
    """Photograph number k: two of the drawn ones cut out, turned, enlarged and aligned, recoloured."""
    rng = np.random.default_rng([7, k])
    first, second = (_cut_out(rng, base[rng.integers(len(base))]) for _ in range(2))
    share = rng.uniform(0.25, 0.75)
    picture = cv2.addWeighted(first, share, second, 1 - share, 0)
    picture = cv2.multiply(picture, (*rng.uniform(0.85, 1.15, 3), 1.0))
    cv2.setRNGSeed(k)
    cv2.randn(noise := np.empty((600, 800, 3), np.int8), 0, 10)
    return cv2.add(picture, noise, dtype=cv2.CV_8U)


def _cut_out(rng: np.random.Generator, picture: np.ndarray) -> np.ndarray:
    height, width = picture.shape[:2]
    centre = (rng.uniform(0.25, 0.75) * width, rng.uniform(0.25, 0.75) * height)
    turn = cv2.getRotationMatrix2D(centre, rng.uniform(0, 360), rng.uniform(1.6, 3.2))
    turn[:, 2] += np.array([400, 300]) - np.array(centre)
    return cv2.warpAffine(picture, turn, (800, 600), borderMode=cv2.BORDER_REFLECT_101)


def _labels(n: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """True labels of n photographs, given ones (one in ten wrong), and what a good classifier answers (n, 5)."""
    rng = np.random.default_rng(1)
    true = rng.choice(5, n, p=SHARES)
    logits = 1.2 * rng.standard_normal((n, 5))
    logits[np.arange(n), true] += 3
    probs = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    given = np.where(rng.random(n) < 0.1, (true + rng.integers(1, 5, n)) % 5, true)
    return true, given, probs


# ---------------------------------------------------------------------------------------------- parts


def part_floor(folder: Path, n: int) -> dict[str, Any]:
    """libjpeg-turbo alone on files in memory: grey at 1/8 scale, and all pixels in colour."""
    cv2.setNumThreads(1)
    paths = sorted((folder / f"photos_{n}").glob("*.jpg"))
    flags = {"eighth": cv2.IMREAD_REDUCED_GRAYSCALE_8, "whole": cv2.IMREAD_COLOR}
    took: dict[str, dict[str, float]] = {name: {} for name in flags}
    size = 0
    with ThreadPoolExecutor(CORES) as pool:
        for at in range(0, len(paths), AT_ONCE):
            raws = [np.fromfile(path, np.uint8) for path in paths[at : at + AT_ONCE]]
            size += sum(map(len, raws))
            for name, flag in flags.items():
                with clocked(took[name]):
                    list(pool.map(lambda raw, flag=flag: cv2.imdecode(raw, flag) is None, raws))
    return {**took["eighth"], "whole": took["whole"], "kilobytes": size / len(paths) / 1e3}


def part_scan(folder: Path, n: int) -> dict[str, Any]:
    took: dict[str, Any] = {}
    with clocked(took):
        manifest, _ = scan(folder / f"photos_{n}", workers=CORES)
    manifest.save(folder / f"{n}/manifest.parquet")
    return took


def part_looks(folder: Path, n: int) -> dict[str, Any]:
    manifest = Manifest.load(folder / f"{n}/manifest.parquet")
    took: dict[str, Any] = {}
    with clocked(took):
        thumbnails = make_thumbnails(manifest, CORES)
    thumbnails.save(folder / f"{n}/thumbnails")
    return took


def part_decoding(folder: Path, n: int) -> dict[str, Any]:
    """Decoding alone, as the thumbnails do it: what no part but the embedding may cost more than."""
    paths = Manifest.load(folder / f"{n}/manifest.parquet").paths
    with ProcessPoolExecutor(CORES, get_context("spawn")) as pool:
        list(pool.map(_decode, paths[: 8 * CORES]))  # starts the processes
        start = time.perf_counter()
        processor = sum(pool.map(_decode, paths, chunksize=16))
        seconds = time.perf_counter() - start
    return {"seconds": seconds, "processor": processor}


def _decode(path: Path) -> float:
    cv2.setNumThreads(1)
    start = time.process_time()
    decode_photo(read_photo(path), at_least=(COMMON, COMMON))
    return time.process_time() - start


def part_duplicates(folder: Path, n: int) -> dict[str, Any]:
    manifest, thumbnails = Manifest.load(folder / f"{n}/manifest.parquet"), Thumbnails.load(folder / f"{n}/thumbnails")
    took: dict[str, Any] = {}
    with clocked(took):
        found = find_duplicates(manifest, thumbnails)
    found.to_parquet(folder / f"{n}/duplicates.parquet")
    return {**took, "groups": int(found["group"].nunique()), "planted": n // COPY_EVERY}


def make_network(manifest: Manifest, folder: Path) -> tuple[Any, ...]:
    """The quick recipe's preprocessing, network, its runner on both cores, and its views."""
    import torch

    from manihot.members.member import input_size
    from manihot.settings import load_recipe
    from manihot.train.networks.backbones import make_model, make_preprocess
    from manihot.train.runners import OnnxRunner

    recipe = load_recipe("quick")
    torch.set_num_threads(CORES)
    preprocess = make_preprocess(recipe.model, input_size(recipe.photo, manifest), recipe.photo.fit)
    network = make_model(recipe.model, 5, preprocess.size)
    return preprocess, network, OnnxRunner(network, preprocess, folder / "backbone.onnx"), recipe.tta


def part_embed(folder: Path, n: int) -> dict[str, Any]:
    """The quick recipe's backbone, one view, on n photographs, decoding included; and the bare network's rates."""
    import torch

    from manihot.infer.forward import PhotoFiles, forward_views
    from manihot.train.runners import TorchRunner

    manifest = Manifest.load(folder / f"{n}/manifest.parquet")
    preprocess, network, runner, views = make_network(manifest, folder / str(n))
    photos, took = PhotoFiles(manifest.paths, preprocess), {}
    with clocked(took):
        rows = np.arange(len(manifest))
        embeddings = forward_views([runner], photos, rows, preprocess, views[:1], want="embeddings")[:, 0]
    np.save(folder / f"{n}/embeddings.npy", embeddings)
    ready = np.random.default_rng(0).integers(0, 256, (32, *preprocess.size, 3), np.uint8)
    bf16 = TorchRunner(network, preprocess, torch.device("cpu"), "bf16")
    bare = {"torch bf16": _seconds_each(bf16, ready), "onnxruntime fp32": _seconds_each(runner, ready)}
    return {**took, "bare": bare, "size": preprocess.size, "dims": embeddings.shape[1]}


def _seconds_each(runner: Callable[[np.ndarray], Any], ready: np.ndarray) -> float:
    """Clock seconds per picture, best of four batches after one that prepares the kernels.

    Where a picture takes over a second (bf16 on a processor that emulates it), the first two have to do.
    """
    start = time.perf_counter()
    runner(ready[:2])
    first = (time.perf_counter() - start) / 2
    if first > 1:
        return first
    runner(ready)
    took = []
    for _ in range(4):
        start = time.perf_counter()
        runner(ready)
        took.append(time.perf_counter() - start)
    return min(took) / len(ready)


def _embeddings(folder: Path, n: int) -> tuple[np.ndarray, bool]:
    """Those that were computed of these photographs, or made ones; and whether they are the former."""
    path = folder / f"{n}/embeddings.npy"
    return (np.load(path), True) if path.exists() else (make_embeddings(n), False)


def part_lookalikes(folder: Path, n: int) -> dict[str, Any]:
    """Copies by embeddings, checked on pixels where the search among pictures did not group them."""
    manifest, thumbnails = Manifest.load(folder / f"{n}/manifest.parquet"), Thumbnails.load(folder / f"{n}/thumbnails")
    manifest = with_groups(manifest, pd.read_parquet(folder / f"{n}/duplicates.parquet"))
    (embeddings, real), took = _embeddings(folder, n), {}
    with clocked(took):
        found = find_lookalikes(manifest, embeddings, thumbnails)
    told = found.drop_duplicates("group")["evidence"].value_counts().to_dict()
    return {**took, "real": real, "groups": int(found["group"].nunique()), **{k: int(v) for k, v in told.items()}}


def part_labels(folder: Path, n: int) -> dict[str, Any]:
    """Wrong labels among five classes, one in ten planted; embeddings of the photographs, made answers.

    Embeddings are moved by class, so that neighbours say something, as those of real classes do.
    """
    (embeddings, real), (true, given, probs) = _embeddings(folder, n), _labels(n)
    rng = np.random.default_rng(2)
    spread = embeddings[:2000].std(axis=0)
    embeddings += 0.5 * spread * rng.standard_normal((5, embeddings.shape[1]), dtype=np.float32)[true]
    took: dict[str, Any] = {}
    with clocked(took):
        table = find_label_errors(given, probs, embeddings=embeddings).sort_values("image_id")
    flagged, wrong = table["is_label_issue"].to_numpy(), given != true
    counts = {"wrong": wrong.sum(), "flagged": flagged.sum(), "right": (flagged & wrong).sum()}
    return {**took, "real": real, **{name: int(value) for name, value in counts.items()}}


# ---------------------------------------------------------------------------------------------- embeddings alone


def make_embeddings(n: int, dims: int = 1280) -> np.ndarray:
    """Vectors as a backbone gives them: a falling spectrum, clusters, and 5 % near copies; float32 (n, dims)."""
    rng = np.random.default_rng(0)
    spectrum = (np.arange(1, dims + 1) ** -0.6).astype(np.float32)
    centres = rng.standard_normal((50, dims), dtype=np.float32)
    vectors = np.empty((n, dims), np.float32)
    for at in range(0, n, 4096):
        rows = vectors[at : at + 4096]
        rows[:] = rng.standard_normal(rows.shape, dtype=np.float32)
        rows += 0.7 * centres[rng.integers(0, 50, len(rows))]
        rows *= spectrum
    copies = rng.choice(n, n // 10, replace=False)
    first, second = copies[: len(copies) // 2], copies[len(copies) // 2 :][: len(copies) // 2]
    vectors[second] = vectors[first] + 0.02 * rng.standard_normal((len(second), dims), dtype=np.float32)
    return vectors


def part_dbscan(folder: Path, n: int) -> dict[str, Any]:
    from sklearn.cluster import DBSCAN

    vectors, took = make_embeddings(n), {}
    with clocked(took):
        label = DBSCAN(eps=EPS, min_samples=1, n_jobs=CORES).fit_predict(vectors)
    np.save(folder / f"dbscan_{n}.npy", label)
    return {**took, "components": int(label.max()) + 1}


def part_components(folder: Path, n: int) -> dict[str, Any]:
    vectors, took = make_embeddings(n), {}
    with clocked(took):
        label = components_within(vectors, EPS)
    expected = folder / f"dbscan_{n}.npy"
    same = bool(np.array_equal(label, np.load(expected))) if expected.exists() else None
    return {**took, "components": int(label.max()) + 1, "same_as_dbscan": same}


def part_lookalikes_alone(folder: Path, n: int) -> dict[str, Any]:
    """As `audit --predictions` looks for copies: embeddings, no photographs; the distance is that of near copies."""
    vectors, took = make_embeddings(n), {}
    table = pd.DataFrame({"image_id": [f"{k:06d}" for k in range(n)], "path": ""})
    manifest = Manifest.from_table(table, ("a",), Path())
    with clocked(took):
        found = find_lookalikes(manifest, vectors, eps=0.4)
    return {**took, "groups": int(found["group"].nunique())}


PARTS: dict[str, Callable[[Path, int], dict[str, Any]]] = {
    "floor": part_floor,
    "scan": part_scan,
    "looks": part_looks,
    "decoding": part_decoding,
    "duplicates": part_duplicates,
    "embed": part_embed,
    "lookalikes": part_lookalikes,
    "labels": part_labels,
    "dbscan": part_dbscan,
    "components": part_components,
    "lookalikes_alone": part_lookalikes_alone,
}
