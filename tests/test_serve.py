"""The server: the answers of Python, on every path, within its limits, whatever is sent to it."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import os
import re
import shutil
import signal
import socket
import struct
import subprocess
import sys
import time
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

import manihot
from manihot.errors import SettingsError
from manihot.export.bundle import Bundle
from manihot.networks.runner import OnnxRunner
from manihot.photos.load import load_in_full
from manihot.photos.preprocess import Preprocess
from manihot.serve.batching import Batcher
from manihot.serve.guard import Tokens
from manihot.serve.inference import read_request
from manihot.serve.refusals import Gate, Refused
from manihot.serve.server import run_server
from manihot.settings.options import Compute, ServerOptions
from test_export import exported, run  # noqa: F401
from test_returns import sound

TOKEN = "a-token-of-twenty-letters"


class Running:
    """A server in a process of its own, on a free port."""

    def __init__(self, export: Path, log: Path, *options: str) -> None:
        self.log = log
        words = (sys.executable, "-m", "manihot", "serve", str(export), "--port", "0", "--workers", "1", *options)
        self.process = subprocess.Popen(words, stderr=log.open("wb"), stdout=subprocess.PIPE)
        deadline = time.monotonic() + 60
        while not (found := re.search(r"http://127\.0\.0\.1:(\d+)/", self.said())):
            assert self.process.poll() is None and time.monotonic() < deadline, self.said()
            time.sleep(0.05)
        self.port = int(found[1])
        self.client = httpx.Client(base_url=f"http://127.0.0.1:{self.port}", timeout=60)
        while True:
            try:
                if self.client.get("/v2/health/ready").status_code == 200:
                    return
            except httpx.TransportError:
                assert self.process.poll() is None, self.said()
            time.sleep(0.05)

    def said(self) -> str:
        return self.log.read_text(encoding="utf-8")

    def lines(self) -> list[dict[str, Any]]:
        """The structured log."""
        return [json.loads(line) for line in self.said().splitlines() if line.startswith("{")]

    def metric(self, name: str) -> float:
        text = self.client.get("/metrics").text
        return float(re.search(rf"^{re.escape(name)} (\S+)$", text, re.MULTILINE)[1])

    def connect(self, head: str) -> socket.socket:
        """A raw connection that has sent `head`."""
        found = socket.create_connection(("127.0.0.1", self.port), timeout=30)
        found.sendall(head.encode())
        return found

    def end(self) -> int:
        self.client.close()
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(30)


@contextmanager
def running(export: Path, log: Path, *options: str) -> Iterator[Running]:
    server = Running(export, log, *options)
    try:
        yield server
    finally:
        if server.process.poll() is None:
            server.process.kill()
            server.process.wait()


@pytest.fixture(scope="module")
def server(exported: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:  # noqa: F811
    home = tmp_path_factory.mktemp("serve")
    with running(exported, home / "log", "--returns", str(home / "returns")) as found:
        yield found


@pytest.fixture(scope="module")
def strict(exported: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:  # noqa: F811
    """With tokens, little room, and little patience."""
    home = tmp_path_factory.mktemp("strict")
    (home / "tokens").write_text(f"# who may\nfield {TOKEN}\n", encoding="utf-8")
    options = ("--tokens", str(home / "tokens"), "--queue", "2", "--seconds", "1.5", "--max-mb", "2")
    with running(exported, home / "log", *options, "--cors", "https://example.org") as found:
        found.client.headers["Authorization"] = f"Bearer {TOKEN}"
        yield found


@pytest.fixture(scope="module")
def files(run: Path) -> list[Path]:  # noqa: F811
    """Photographs that can be read."""
    return [path for path in sorted((run.parent / "demo/train_images").glob("*.jpg")) if path.stat().st_size > 4000][:8]


@pytest.fixture(scope="module")
def pixels(exported: Path, files: list[Path]) -> np.ndarray:  # noqa: F811
    about = json.loads((exported / "model.json").read_text(encoding="utf-8"))
    preprocess = Preprocess.from_json(about["preprocess"])
    return np.stack([load_in_full(file, preprocess) for file in files])


def archive(contents: dict[str, bytes], how: int = zipfile.ZIP_STORED) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", how) as made:
        for name, content in contents.items():
            made.writestr(name, content)
    return file.getvalue()


def png(width: int, height: int, rows: bytes = b"") -> bytes:
    """A PNG that says it has so many pixels."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def test_one_photograph_and_a_zip_get_the_answers_of_python(
    server: Running,
    exported: Path,  # noqa: F811
    files: list[Path],
):
    alone = [server.client.post("/v1/classify", content=file.read_bytes()) for file in files]
    assert [one.status_code for one in alone] == [200] * len(files)
    bundle = Bundle.load(exported)
    assert tuple(alone[0].json()["classes"]) == bundle.classes
    answers = [one.to_json() for one in bundle.classify(files)]
    assert [json.dumps({key: one.json()[key] for key in answers[0]}) for one in alone] == list(map(json.dumps, answers))
    written = [json.dumps(one["probabilities"]) for one in answers]
    packed = archive({file.name: file.read_bytes() for file in files} | {"notes.txt": b"not a photograph"})
    together = server.client.post("/v1/classify", content=packed).json()["answers"]
    assert [json.dumps(one["probabilities"]) for one in together[:-1]] == written
    assert [one["name"] for one in together] == [*(file.name for file in files), "notes.txt"]
    assert together[-1]["kind"] == "not_an_image"
    assert set(together[0]["quality"]) == {"sharpness", "brightness", "zoom"}


def test_the_answers_are_those_of_predict(
    server: Running,
    exported: Path,  # noqa: F811
    files: list[Path],
    tmp_path: Path,
):
    (tmp_path / "photos").mkdir()
    for file in files:
        shutil.copy(file, tmp_path / "photos")
    manihot.predict(exported, tmp_path / "photos", out=tmp_path / "out.parquet", compute=Compute(workers=1))
    found = manihot.Predictions.load(tmp_path / "out.parquet")
    rows = {Path(str(name)).stem: row for name, row in zip(found.image_id, found.pred_probs, strict=True)}
    for file in files:
        answer = server.client.post("/v1/classify", content=file.read_bytes()).json()
        # a table of predictions keeps logarithms in single precision, which can move the sixth digit by one
        assert np.abs(np.array(answer["probabilities"]) - rows[file.stem]).max() < 1.1e-6, file.name


def test_returns_are_checked_and_kept_once(server: Running, files: list[Path], tmp_path: Path):
    body = sound(tmp_path / "returns.zip").read_bytes()
    first, second = (server.client.post("/v1/returns", content=body) for _ in range(2))
    assert (first.status_code, second.status_code) == (201, 201), first.text
    assert first.json()["photographs"] > 1 and not first.json()["known"] and second.json()["known"]
    folder = server.log.parent / "returns"
    assert [path.name for path in folder.iterdir()] == [first.json()["kept"]]
    assert (folder / first.json()["kept"]).read_bytes() == body
    for other in (b"", b"PK", body[: len(body) // 2], archive({"a.jpg": jpeg(files)}), bytes(1000)):
        answer = server.client.post("/v1/returns", content=other)
        assert answer.status_code == 422 and answer.json()["error"], answer.text
    many = archive({f"{k}": b"" for k in range(20_001)})
    assert server.client.post("/v1/returns", content=many).status_code == 413
    assert len(list(folder.iterdir())) == 1
    assert server.metric("manihot_returns_total") == 2


def test_without_a_folder_no_returns_are_taken(strict: Running):
    assert strict.client.post("/v1/returns", content=b"x").status_code == 404


def test_a_photograph_in_a_batch_gets_the_very_same_bits(exported: Path, pixels: np.ndarray):  # noqa: F811
    runner = OnnxRunner(exported / "model.onnx", threads=1)
    together = runner(pixels)
    for k, one in enumerate(pixels):
        alone = runner(one[None])
        assert all(np.array_equal(alone[name][0], together[name][k]) for name in together)


def jpeg(files: list[Path]) -> bytes:
    return files[0].read_bytes()


def grown(good: bytes) -> bytes:
    """A JPEG that says it has 65,000 x 65,000 pixels."""
    at = good.index(b"\xff\xc0") + 5
    return good[:at] + struct.pack(">HH", 65_000, 65_000) + good[at + 4 :]


def bad_bodies(good: bytes) -> dict[str, tuple[bytes, int]]:
    """What must be refused, and with which status."""
    gif = io.BytesIO()
    Image.new("RGB", (30, 30)).save(gif, "GIF")
    return {
        "nothing": (b"", 422),
        "text": (b"hello", 415),
        "a page": (b"<!doctype html><html></html>", 415),
        "another format": (gif.getvalue(), 415),
        "a program": (b"\x7fELF" + bytes(400), 415),
        "cut": (good[: len(good) // 2], 422),
        "only a head": (good[:300], 422),
        "zeros": (bytes(2000), 415),
        "a bomb": (png(60_000, 60_000), 413),
        "a flat bomb": (png(9000, 9000, bytes(27001 * 9000)), 413),
        "a lie": (png(500, 500, b"short"), 422),
        "a JPEG bomb": (grown(good), 413),
        "a broken zip": (b"PK\x03\x04" + bytes(100), 422),
        "an empty zip": (archive({"folder/": b""}), 422),
        "too many": (archive({f"{k}.jpg": b"" for k in range(65)}), 413),
        "a zip bomb": (archive({"a.jpg": bytes(30_000_000)}, zipfile.ZIP_DEFLATED), 413),
        "a zip of bombs": (archive({f"{k}": bytes(24_000_000) for k in range(5)}, zipfile.ZIP_DEFLATED), 413),
    }


def test_what_can_t_be_read_is_refused_with_words_and_without_a_restart(server: Running, files: list[Path]):
    for name, (body, status) in bad_bodies(jpeg(files)).items():
        answer = server.client.post("/v1/classify", content=body)
        assert answer.status_code == status, (name, answer.text)
        assert answer.json()["error"] and answer.json()["kind"], name
    assert server.metric("manihot_decoder_restarts_total") == 0
    assert server.client.post("/v1/classify", content=jpeg(files)).status_code == 200


def test_bodies_are_limited_by_size_and_sent_as_they_are(server: Running, strict: Running):
    large = bytes(3_000_000)
    assert strict.client.post("/v1/classify", content=large).status_code == 413
    assert strict.client.post("/v1/classify", content=iter([large[:1_500_000]] * 2)).status_code == 413  # in chunks
    packed = server.client.post("/v1/classify", content=b"x", headers={"Content-Encoding": "gzip"})
    assert packed.status_code == 415 and "compressed" in packed.json()["error"]
    head = "POST /v1/classify HTTP/1.1\r\nHost: x\r\nContent-Length: -5\r\n\r\n"
    with server.connect(head) as connection:
        assert connection.recv(100).startswith(b"HTTP/1.1 400")


def slow_upload(server: Running, length: int = 1000) -> socket.socket:
    """A request whose body doesn't come."""
    head = f"POST /v1/classify HTTP/1.1\r\nHost: x\r\nContent-Length: {length}\r\nAuthorization: Bearer {TOKEN}\r\n\r\n"
    return server.connect(head)


def test_slow_clients_are_cut_off(strict: Running):
    started = time.monotonic()
    with slow_upload(strict) as body, strict.connect("POST /v1/cla") as head:
        assert body.recv(100).startswith(b"HTTP/1.1 408")
        assert head.recv(100) == b""  # closed without a word
    assert 1 < time.monotonic() - started < 15


def test_a_client_that_goes_away_is_no_fault_of_the_server(strict: Running):
    name = 'manihot_requests_total{path="/v1/classify",status="499"}'
    with slow_upload(strict) as connection:
        connection.sendall(b"x")
        time.sleep(0.2)
    deadline = time.monotonic() + 20
    while name not in (text := strict.client.get("/metrics").text):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert 'status="500"' not in text


def test_who_finds_no_room_is_asked_to_come_again(strict: Running, files: list[Path]):
    deadline, answer = time.monotonic() + 60, None
    while answer is None or answer.status_code != 429:  # on a busy machine the slow ones may be cut off before we ask
        assert time.monotonic() < deadline
        with slow_upload(strict), slow_upload(strict):
            answer = strict.client.post("/v1/classify", content=jpeg(files))
    assert 1 <= int(answer.headers["Retry-After"]) <= 60 and answer.json()["kind"] == "busy"
    while strict.client.post("/v1/classify", content=jpeg(files)).status_code != 200:
        assert time.monotonic() < deadline
    assert strict.metric("manihot_photographs_held") == 0 == strict.metric("manihot_body_bytes_held")


def test_room_is_counted_by_photographs_and_by_bytes():
    gate = Gate(3, 100)
    with gate.enter(90):
        with pytest.raises(Refused, match="busy"), gate.enter(20):
            pass
        with gate.enter(10), gate.more(1), pytest.raises(Refused) as found, gate.enter(0):
            pass
    assert found.value.status == 429 and (gate.held, gate.bytes) == (0, 0)
    with gate.enter(500), gate.more(50):  # alone, whatever it is
        pass


def test_without_a_token_only_health_and_the_pages_answer(strict: Running, files: list[Path]):
    plain = httpx.Client(base_url=strict.client.base_url)
    for path in ("/metrics", "/v2", "/v2/models/manihot", "/openapi.json", "/nothing"):
        answer = plain.get(path)
        assert answer.status_code == 401 and answer.headers["WWW-Authenticate"] == "Bearer", path
    for header in (f"Bearer {TOKEN}x", f"Basic {TOKEN}", "Bearer", f"Bearer {TOKEN[:-1]}", "Bearer \xff"):
        answer = plain.post("/v1/classify", content=jpeg(files), headers={"Authorization": header.encode("latin-1")})
        assert answer.status_code == 401
    for path in ("/v2/health/live", "/v2/health/ready", "/", "/returns"):
        assert plain.get(path).status_code == 200, path
    assert strict.client.post("/v1/classify", content=jpeg(files)).status_code == 200


def test_other_origins_may_ask_only_where_they_are_named(server: Running, strict: Running):
    asked = {"Origin": "https://example.org", "Access-Control-Request-Method": "POST"}
    assert "access-control-allow-origin" not in server.client.options("/v1/classify", headers=asked).headers
    assert "access-control-allow-origin" not in server.client.get("/v2", headers=asked).headers
    allowed = strict.client.options("/v1/classify", headers=asked)
    assert allowed.headers["access-control-allow-origin"] == "https://example.org"
    other = strict.client.options("/v1/classify", headers=asked | {"Origin": "https://else.org"})
    assert "access-control-allow-origin" not in other.headers


def test_the_log_has_a_line_for_each_request_and_nothing_of_its_content(strict: Running, files: list[Path]):
    strict.client.post("/v1/classify?name=secret-name", content=jpeg(files), headers={"User-Agent": "secret-agent"})
    strict.client.get("/secret-path")
    deadline = time.monotonic() + 10
    while not any(line.get("status") == 404 for line in strict.lines()):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    line = next(one for one in reversed(strict.lines()) if one["event"] == "request" and one["status"] == 200)
    assert line["path"] == "/v1/classify" and line["token"] == "field" and line["bytes"] == len(jpeg(files))
    assert set(line) == {"time", "level", "event", "id", "method", "path", "status", "seconds", "bytes", "token"}
    assert "secret" not in strict.said() and TOKEN not in strict.said()


def test_metrics_are_read_by_prometheus(server: Running, files: list[Path]):
    before = server.metric('manihot_photographs_total{outcome="classified"}')
    server.client.post("/v1/classify", content=jpeg(files))
    answer = server.client.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    parser = pytest.importorskip("prometheus_client.parser")
    families = {one.name: one for one in parser.text_string_to_metric_families(answer.text)}
    samples = {(one.name, *sorted(one.labels.items())): one.value for f in families.values() for one in f.samples}
    assert samples["manihot_photographs_total", ("outcome", "classified")] == before + 1
    seconds = [value for (name, *rest), value in samples.items() if name == "manihot_request_seconds_bucket"]
    assert seconds == sorted(seconds) and seconds[-1] == samples[("manihot_request_seconds_count",)]
    assert families["manihot_request_seconds"].type == "histogram" and samples[("manihot_resident_bytes",)] > 1e7


def test_the_inference_protocol_in_json_and_in_bytes(server: Running, files: list[Path], pixels: np.ndarray):
    about = server.client.get("/v2/models/manihot").json()
    assert about["inputs"][0] == {"name": "photos", "datatype": "UINT8", "shape": [-1, *pixels.shape[1:]]}
    shape, path = list(pixels[:2].shape), "/v2/models/manihot/infer"
    plain = {"name": "photos", "datatype": "UINT8", "shape": shape}
    wanted = {"name": "probabilities"}
    body = {"id": "7", "inputs": [plain | {"data": pixels[:2].tolist()}], "outputs": [wanted]}
    one = server.client.post(path, json=body).json()
    assert one["id"] == "7" and one["outputs"][0]["shape"][0] == 2 and one["model_name"] == "manihot"
    coded = [base64.b64encode(file.read_bytes()).decode() for file in files[:2]]
    tensor = {"name": "photographs", "datatype": "BYTES", "shape": [2], "data": coded}
    assert server.client.post(path, json=body | {"inputs": [tensor]}).json() == one
    raw = pixels[:2].tobytes()
    head = json.dumps(
        {
            "inputs": [plain | {"parameters": {"binary_data_size": len(raw)}}],
            "outputs": [wanted | {"parameters": {"binary_data": True}}],
        }
    ).encode()
    answer = server.client.post(path, content=head + raw, headers={"Inference-Header-Content-Length": str(len(head))})
    length = int(answer.headers["Inference-Header-Content-Length"])
    found = np.frombuffer(answer.content[length:], "<f4")
    assert found.tolist() == one["outputs"][0]["data"]


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[",
        b"[" * 100_000,
        b"{}",
        b'{"inputs": []}',
        b'{"inputs": [{"name": "photos", "datatype": "FP32", "shape": [1]}]}',
        b'{"inputs": [{"name": "photos", "datatype": "UINT8", "shape": [1, 2, 2, 3], "data": [1]}]}',
        b'{"inputs": [{"name": "photographs", "datatype": "BYTES", "shape": [1], "data": ["%%"]}]}',
        b'{"inputs": [{"name": "photographs", "datatype": "BYTES", "shape": [65], "data": []}]}',
        b'{"inputs": [{"name": "photographs", "datatype": "BYTES", "shape": [2, 2], "data": []}]}',
        b'{"inputs": [{"name": "photographs", "datatype": "BYTES", "shape": [1], "parameters": {"binary_data_size": 9}'
        b"}]}",
        b'{"inputs": [{"name": "other", "datatype": "BYTES", "shape": [1], "data": [""]}]}',
    ],
)
def test_a_wrong_request_of_the_protocol_is_a_400_with_words(server: Running, body: bytes):
    answer = server.client.post("/v2/models/manihot/infer", content=body)
    assert answer.status_code == 400 and answer.json()["error"], answer.text


@pytest.mark.parametrize("length", ["", "-1", "3", "\u0663", "1.0", "0" * 5000 + "1", "9" * 5000])
def test_the_length_of_the_json_is_one_that_it_can_have(length: str):
    with pytest.raises(Refused) as found:
        read_request(b"{}", length)
    assert found.value.status == 400 and "Inference-Header-Content-Length" in found.value.detail


def test_a_public_client_of_the_protocol_gets_its_answers(server: Running, files: list[Path], pixels: np.ndarray):
    client = pytest.importorskip("tritonclient.http")
    found = client.InferenceServerClient(f"127.0.0.1:{server.port}", network_timeout=60, connection_timeout=60)
    assert found.is_server_live() and found.is_server_ready() and found.is_model_ready("manihot")
    assert found.get_server_metadata()["name"] == "manihot"
    assert {one["name"] for one in found.get_model_metadata("manihot")["outputs"]} >= {"probabilities", "embeddings"}
    answers = []
    for binary in (True, False):
        tensor = client.InferInput("photos", list(pixels.shape), "UINT8")
        tensor.set_data_from_numpy(pixels, binary_data=binary)
        wanted = [client.InferRequestedOutput("probabilities", binary_data=binary)]
        answers.append(found.infer("manihot", [tensor], outputs=wanted).as_numpy("probabilities"))
    tensor = client.InferInput("photographs", [len(files)], "BYTES")
    tensor.set_data_from_numpy(np.array([file.read_bytes() for file in files], dtype=np.object_))
    answers.append(found.infer("manihot", [tensor]).as_numpy("probabilities"))
    assert np.array_equal(answers[0], answers[1]) and np.array_equal(answers[0], answers[2])
    with pytest.raises(Exception, match="photograph 0"):
        broken = client.InferInput("photographs", [1], "BYTES")
        broken.set_data_from_numpy(np.array([b"no"], dtype=np.object_))
        found.infer("manihot", [broken])
    found.close()


def children(process: int) -> list[int]:
    text = subprocess.run(["ps", "-o", "pid=", "--ppid", str(process)], capture_output=True, text=True).stdout
    return [int(word) for word in text.split()]


@pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")
def test_a_dead_decoder_is_replaced_and_sigterm_drains(
    exported: Path,  # noqa: F811
    files: list[Path],
    tmp_path: Path,
):
    with running(exported, tmp_path / "log", "--seconds", "20") as server:
        own = children(server.process.pid)
        os.kill(own[0], signal.SIGKILL)
        first = server.client.post("/v1/classify", content=jpeg(files))
        assert first.status_code in (200, 422)
        assert server.client.post("/v1/classify", content=jpeg(files)).status_code == 200
        assert server.metric("manihot_decoder_restarts_total") == 1
        body = jpeg(files)
        with slow_upload(server, len(body)) as connection:
            connection.sendall(body[:1000])
            time.sleep(0.3)
            server.process.send_signal(signal.SIGTERM)
            time.sleep(0.5)
            with pytest.raises(OSError):
                socket.create_connection(("127.0.0.1", server.port), timeout=1)
            connection.sendall(body[1000:])
            assert connection.recv(100).startswith(b"HTTP/1.1 200")
        assert server.process.wait(20) == 0
        assert b"classified in" in server.process.stdout.read()
        assert "Traceback" not in server.said()
        assert not [one for one in own if Path(f"/proc/{one}").exists()]


def test_batches_close_by_size_by_time_and_when_nobody_comes():
    sizes: list[int] = []

    def runner(photos: np.ndarray) -> dict[str, np.ndarray]:
        time.sleep(0.02)
        return {"sum": photos.reshape(len(photos), -1).sum(axis=1)}

    async def work(coming: int, wait: float) -> list[int]:
        sizes.clear()
        batcher = Batcher(runner, 3, wait, lambda: coming, sizes.append)
        batcher.start()
        photos = [np.full((2, 2, 3), k, np.uint8) for k in range(7)]
        found = await asyncio.gather(*(batcher(one) for one in photos))
        assert [int(row["sum"]) for row in found] == [12 * k for k in range(7)]
        await batcher.stop()
        return list(sizes)

    assert asyncio.run(work(1, 0.2)) == [3, 3, 1]  # the last has waited
    started = time.monotonic()
    assert asyncio.run(work(0, 60.0)) == [3, 3, 1]  # nobody is on the way
    assert time.monotonic() - started < 10


def test_a_network_that_fails_is_told_to_those_who_asked():
    async def work() -> None:
        def runner(photos: np.ndarray) -> dict[str, np.ndarray]:
            if photos.max() > 5:
                raise RuntimeError("it fails")
            return {"x": photos[:, 0, 0, 0]}

        batcher = Batcher(runner, 1, 0.0, lambda: 0, lambda _: None)
        batcher.start()
        with pytest.raises(RuntimeError):
            await batcher(np.full((1, 1, 3), 9, np.uint8))
        assert (await batcher(np.full((1, 1, 3), 4, np.uint8)))["x"] == 4
        await batcher.stop()

    asyncio.run(work())


@pytest.mark.skipif(sys.platform != "linux", reason="RLIMIT_AS")
def test_a_decoder_can_t_take_more_memory_than_it_may():
    code = (
        "from manihot.serve.decoder import limit_memory\nlimit_memory(100 << 20)\nx = bytearray(50 << 20)\n"
        "try:\n    y = bytearray(90 << 20)\nexcept MemoryError:\n    print('refused')"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "refused"


def test_nothing_is_pickled():
    room = Path(sys.modules[Batcher.__module__].__file__).parent
    text = "".join(path.read_text(encoding="utf-8") for path in room.glob("*.py"))
    assert not re.search(r"^\s*(import|from) (pickle|multiprocessing|marshal|shelve)", text, re.MULTILINE)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"port": 70000}, "can't listen there"),
        ({"queue": 0}, "--queue 0: out of range"),
        ({"page": Path("none.html")}, "none.html: there is no file"),
        ({"tokens": Path("none.txt")}, "none.txt: can't be read"),
    ],
)
def test_options_that_can_t_be_are_told(exported: Path, options: dict[str, Any], words: str):  # noqa: F811
    with pytest.raises(SettingsError, match=words) as found:
        run_server(exported, ServerOptions(**options), Compute())
    assert found.value.remedy


def test_tokens_are_a_name_and_enough_letters(tmp_path: Path):
    for text in ("", "# none\n", "field short\n", f"{TOKEN}\n", f"a b {TOKEN}\n", f"n\u00e4me {TOKEN}\n"):
        (tmp_path / "tokens").write_text(text, encoding="utf-8")
        with pytest.raises(SettingsError, match="tokens"):
            Tokens.load(tmp_path / "tokens")
