"""The Open Inference Protocol v2 (REST), with its binary extension, so that existing clients work.

Inputs: `photos`, UINT8 of the model's input shape (-1, height, width, 3), or `photographs`, BYTES (-1): files as they
come from a camera. In JSON, BYTES are base64. Outputs: those of the network.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import math
import re
from typing import Annotated, Any, Literal

import numpy as np
from fastapi import FastAPI, Request
from pydantic import BaseModel, Field, ValidationError
from starlette.responses import JSONResponse, Response

import manihot
from manihot.networks.runner import Outputs
from manihot.photos.decode import PhotoFault
from manihot.records.readers import parse_json
from manihot.serve.refusals import Refused, refusal_of
from manihot.serve.service import MOST_AT_ONCE, Service, body_of

PIXELS, FILES = "photos", "photographs"
VERSION = "1"
MOST_JSON = 8_000_000  # bytes of JSON; tensors that are larger come by the binary extension
JSON_LENGTH = "Inference-Header-Content-Length"
TYPES = {"tensor(float)": "FP32", "tensor(double)": "FP64", "tensor(uint8)": "UINT8", "tensor(int64)": "INT64"}
KINDS = {"float32": "FP32", "float64": "FP64", "uint8": "UINT8", "int64": "INT64"}


class Tensor(BaseModel):
    """An input of a request."""

    name: str
    shape: Annotated[list[Annotated[int, Field(ge=0, le=1 << 20)]], Field(max_length=4)]
    datatype: Literal["UINT8", "BYTES"]
    parameters: dict[str, Any] = {}
    data: Any = None


class Wanted(BaseModel):
    """An output that is asked for."""

    name: str
    parameters: dict[str, Any] = {}


class Inference(BaseModel):
    """A request."""

    id: Annotated[str, Field(max_length=200)] = ""
    inputs: Annotated[list[Tensor], Field(min_length=1, max_length=1)]
    outputs: Annotated[list[Wanted], Field(max_length=32)] = []
    parameters: dict[str, Any] = {}


def add_routes(app: FastAPI, service: Service) -> None:
    """Add the paths of the protocol."""

    @app.get("/v2/health/live")
    async def live() -> Response:
        return JSONResponse({"live": True})

    @app.get("/v2/health/ready")
    async def ready() -> Response:
        return JSONResponse({"ready": service.ready}, 200 if service.ready else 503)

    @app.get("/v2")
    async def server() -> Response:
        found = {"name": "manihot", "version": manihot.__version__, "extensions": ["binary_tensor_data"]}
        return JSONResponse(found)

    @app.get("/v2/models/{name}")
    async def model(name: str) -> Response:
        _check_name(name, service)
        return JSONResponse(describe(service))

    @app.get("/v2/models/{name}/ready")
    async def model_ready(name: str) -> Response:
        _check_name(name, service)
        return JSONResponse({"name": name, "ready": service.ready}, 200 if service.ready else 503)

    @app.post("/v2/models/{name}/infer")
    async def infer(name: str, request: Request) -> Response:
        _check_name(name, service)
        with service.room(request):
            body = await body_of(request, service.limits)
            asked, rest = read_request(body, request.headers.get(JSON_LENGTH))
            rows = await _compute(asked.inputs[0], rest, service)
            return answer(asked, rows, service.options.name)


def _check_name(name: str, service: Service) -> None:
    if name != service.options.name:
        raise Refused(404, "no_such_model", "there is no such model", f"the model is {service.options.name}")


def describe(service: Service) -> dict[str, Any]:
    """The model's metadata."""
    height, width = service.bundle.preprocess.size
    runner = service.bundle.runner
    kinds = {one.name: one for one in runner.session.get_outputs()}
    outputs = [
        {
            "name": name,
            "datatype": TYPES[kinds[name].type],
            "shape": [edge if isinstance(edge, int) else -1 for edge in kinds[name].shape],
        }
        for name in runner.outputs
    ]
    return {
        "name": service.options.name,
        "versions": [VERSION],
        "platform": "onnxruntime_onnx",
        "inputs": [
            {"name": PIXELS, "datatype": "UINT8", "shape": [-1, height, width, 3]},
            {"name": FILES, "datatype": "BYTES", "shape": [-1]},
        ],
        "outputs": outputs,
    }


def _wrong(detail: str) -> Refused:
    return Refused(400, "wrong_request", detail, "see /v2/models/NAME for the inputs and docs/serve.md for examples")


def read_request(body: bytes, json_length: str | None) -> tuple[Inference, bytes]:
    """The request and the binary tensors behind it; Refused (400) for anything else."""
    length = len(body)
    if json_length is not None:
        if not re.fullmatch("[0-9]{1,12}", json_length) or int(json_length) > length:
            raise _wrong(f"{JSON_LENGTH} is not the length of the JSON at the beginning of the body")
        length = int(json_length)
    if length > MOST_JSON:
        raise _wrong(f"more than {MOST_JSON / 1e6:g} MB of JSON; send tensors by the binary extension")
    try:
        asked = Inference.model_validate(parse_json(body[:length]))
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        raise _wrong(f"{'.'.join(map(str, first['loc'])) or 'the request'}: {first['msg']}") from None
    except (ValueError, RecursionError):
        raise _wrong("the body is not JSON, or nested too deeply") from None
    return asked, body[length:]


async def _compute(tensor: Tensor, rest: bytes, service: Service) -> list[Outputs]:
    if not tensor.shape or not 1 <= tensor.shape[0] <= MOST_AT_ONCE:
        raise _wrong(f"shape {tensor.shape}: 1 to {MOST_AT_ONCE} photographs at once")
    with service.gate.more(tensor.shape[0] - 1):
        if (tensor.name, tensor.datatype) == (PIXELS, "UINT8"):
            pixels = pixels_of(tensor, rest, service.bundle.preprocess.size)
            return list(await asyncio.gather(*(service.compute(one) for one in pixels)))
        if (tensor.name, tensor.datatype) == (FILES, "BYTES"):
            files = enumerate(files_of(tensor, rest))
            return list(await asyncio.gather(*(_of_file(service, number, raw) for number, raw in files)))
    raise _wrong(f"an input {tensor.name[:80]!r} of {tensor.datatype}: there are {PIXELS} (UINT8) and {FILES} (BYTES)")


async def _of_file(service: Service, number: int, raw: bytes) -> Outputs:
    try:
        return await service.compute((await service.decode(raw)).pixels)
    except PhotoFault as fault:
        raise refusal_of(fault, f"photograph {number}") from fault


def _binary(tensor: Tensor, rest: bytes) -> bytes | None:
    """The tensor's own bytes, where it has some; Refused where their number is wrong."""
    size = tensor.parameters.get("binary_data_size")
    if size is None:
        return None
    if type(size) is not int or size != len(rest) or tensor.data is not None:
        raise _wrong(f"binary_data_size: {len(rest)} bytes follow the JSON, and data must not be given as well")
    return rest


def pixels_of(tensor: Tensor, rest: bytes, size: tuple[int, int]) -> np.ndarray:
    """uint8 (n, height, width, 3); Refused for anything else."""
    shape = (tensor.shape[0], *size, 3)
    if tuple(tensor.shape) != shape:
        raise _wrong(f"shape {tensor.shape}: the model takes {list(shape)}")
    raw = _binary(tensor, rest)
    if raw is not None:
        if len(raw) != math.prod(shape):
            raise _wrong(f"{len(raw)} bytes for the shape {tensor.shape}")
        return np.frombuffer(raw, np.uint8).reshape(shape)
    try:
        values = np.asarray(tensor.data)
        if values.dtype.kind not in "iu" or values.min() < 0 or values.max() > 255:
            raise ValueError
        return values.astype(np.uint8).reshape(shape)
    except (ValueError, TypeError, OverflowError):
        raise _wrong("data: not whole numbers from 0 to 255, as many as the shape says") from None


def files_of(tensor: Tensor, rest: bytes) -> list[bytes]:
    """The files of a BYTES tensor; Refused for anything else."""
    raw, count = _binary(tensor, rest), tensor.shape[0]
    if len(tensor.shape) != 1:
        raise _wrong(f"shape {tensor.shape}: {FILES} have one dimension")
    if raw is None:
        texts = tensor.data if isinstance(tensor.data, list) else []
        if len(texts) != count or not all(isinstance(text, str) for text in texts):
            raise _wrong(f"data: not {count} texts in base64")
        try:
            return [base64.b64decode(text, validate=True) for text in texts]
        except (binascii.Error, ValueError):
            raise _wrong("data: not base64") from None
    found, at = [], 0
    for _ in range(count):
        end = at + 4 + int.from_bytes(raw[at : at + 4], "little")
        if at + 4 > len(raw) or end > len(raw):
            raise _wrong(f"the bytes end before {count} elements do")
        found.append(raw[at + 4 : end])
        at = end
    if at != len(raw):
        raise _wrong(f"more bytes than {count} elements have")
    return found


def answer(asked: Inference, rows: list[Outputs], name: str) -> Response:
    """The outputs that were asked for, all where none was named, each as JSON or behind it."""
    known = rows[0]
    wanted = asked.outputs or [Wanted(name=one) for one in known]
    unknown = next((one.name for one in wanted if one.name not in known), None)
    if unknown is not None:
        raise _wrong(f"there is no output {unknown[:80]!r}: {', '.join(known)}")
    binary = asked.parameters.get("binary_data_output") is True
    outputs: list[dict[str, Any]] = []
    behind: list[bytes] = []
    for one in wanted:
        values = np.stack([row[one.name] for row in rows])
        about: dict[str, Any] = {"name": one.name, "datatype": KINDS[values.dtype.name], "shape": list(values.shape)}
        if one.parameters.get("binary_data", binary) is True:
            behind.append(np.ascontiguousarray(values).tobytes())
            about["parameters"] = {"binary_data_size": len(behind[-1])}
        else:
            about["data"] = values.ravel().tolist()
        outputs.append(about)
    found: dict[str, Any] = {"model_name": name, "model_version": VERSION, "outputs": outputs}
    if asked.id:
        found["id"] = asked.id
    response = JSONResponse(found)
    if not behind:
        return response
    headers = {JSON_LENGTH: str(len(response.body))}
    return Response(bytes(response.body) + b"".join(behind), media_type="application/octet-stream", headers=headers)
