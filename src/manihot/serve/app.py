"""The routes: /v1 of our own, /v2 of the Open Inference Protocol, /metrics, and the page for phones."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib import resources
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import HTTPException
from fastapi.middleware.cors import CORSMiddleware
from starlette.exceptions import HTTPException as StarletteHTTPException
from starlette.responses import FileResponse, HTMLResponse, JSONResponse, Response
from starlette.types import ASGIApp

import manihot
from manihot.photos.decode import PhotoFault
from manihot.serve import inference
from manihot.serve.counters import CONTENT_TYPE
from manihot.serve.guard import Guard, Tokens
from manihot.serve.refusals import Refused, refusal_of
from manihot.serve.returns import Returns
from manihot.serve.service import ZIP, Service, body_of, unpack

STATIC_POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'"
WORDS = {404: "no_such_path", 405: "wrong_method"}


def make_app(service: Service, tokens: Tokens) -> ASGIApp:
    """The application, guarded."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        await service.start()
        try:
            yield
        finally:
            await service.stop()

    app = FastAPI(title="manihot", version=manihot.__version__, lifespan=lifespan, docs_url=None, redoc_url=None)
    app.add_exception_handler(Refused, _refused)
    app.add_exception_handler(PhotoFault, _fault)
    app.add_exception_handler(StarletteHTTPException, _of_http)
    app.add_exception_handler(HTTPException, _of_http)
    app.add_exception_handler(Exception, _failed)
    if service.options.cors:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=list(service.options.cors),
            allow_methods=["GET", "POST"],
            allow_headers=["Authorization", "Content-Type"],
        )
    _add_own(app, service)
    _add_pages(app, service)
    inference.add_routes(app, service)
    paths = frozenset(path for route in app.routes if (path := getattr(route, "path", "")))
    own = frozenset(path.replace("{name}", service.options.name) for path in paths)
    return Guard(app, service.counters, tokens, 3 * service.options.seconds, own)


def _add_own(app: FastAPI, service: Service) -> None:
    returns = Returns(service.options.returns, service.limits.seconds)

    @app.post("/v1/classify")
    async def classify(request: Request) -> Response:
        """One photograph as the body, or a zip of up to 64."""
        with service.room(request):
            raw = await body_of(request, service.limits)
            if not raw.startswith(ZIP):
                return JSONResponse(await service.classify(raw))
            files = await asyncio.to_thread(unpack, raw, service.limits.body)
            with service.gate.more(len(files) - 1):
                found = await asyncio.gather(*(_one(service, name, content) for name, content in files))
            return JSONResponse({"answers": found})

    @app.post("/v1/returns")
    async def take_returns(request: Request) -> Response:
        """The returns.zip of a phone."""
        found = await returns.take(request)
        service.counters.returns.add()
        return JSONResponse(found, 201)

    @app.get("/metrics")
    async def metrics() -> Response:
        return Response(service.counters.text(), media_type=CONTENT_TYPE)


async def _one(service: Service, name: str, content: bytes) -> dict[str, Any]:
    try:
        return {"name": name, **await service.classify(content)}
    except PhotoFault as fault:
        return {"name": name, **refusal_of(fault).to_json()}


def _add_pages(app: FastAPI, service: Service) -> None:
    page = service.options.page

    @app.get("/", include_in_schema=False)
    async def start(request: Request) -> Response:
        if page is None:
            return HTMLResponse(_static("start.html"), headers={"Content-Security-Policy": STATIC_POLICY})
        facts = page.stat()
        tag = '"' + hashlib.sha256(f"{facts.st_size} {facts.st_mtime_ns}".encode()).hexdigest()[:16] + '"'
        headers = {"Cache-Control": "no-cache", "ETag": tag}
        if request.headers.get("if-none-match") == tag:
            return Response(status_code=304, headers=headers)
        return FileResponse(page, media_type="text/html; charset=utf-8", headers=headers)

    @app.get("/returns", include_in_schema=False)
    async def hand_in() -> Response:
        return HTMLResponse(_static("returns.html"), headers={"Content-Security-Policy": STATIC_POLICY})


def _static(name: str) -> str:
    return (resources.files("manihot.serve") / "pages" / name).read_text(encoding="utf-8")


async def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, Refused)
    return JSONResponse(error.to_json(), error.status, error.headers)


async def _fault(request: Request, error: Exception) -> Response:
    assert isinstance(error, PhotoFault)
    return await _refused(request, refusal_of(error))


async def _of_http(request: Request, error: Exception) -> Response:
    assert isinstance(error, StarletteHTTPException)
    refused = Refused(error.status_code, WORDS.get(error.status_code, "refused"), str(error.detail))
    return JSONResponse(refused.to_json(), error.status_code, error.headers)


async def _failed(request: Request, error: Exception) -> Response:
    """The answer to a fault of ours; the guard writes where it was to the log."""
    refused = Refused(500, "error", "the server failed on this; its log says where", "report this")
    return JSONResponse(refused.to_json(), 500)
