"""The review on a server: the same page, signed in by a link, answers to a database, an overview for the lead.

Photographs are asked for by their number in the manifest and come out as newly encoded pixels, so no request can name
a file, and nothing but pictures leaves the folder. A reviewer's token stands in a link, then in a cookie that scripts
can't read; writing needs JSON from the same origin. An answer is confirmed once it is on the database's disk.
"""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Awaitable, Callable
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import urlsplit

import uvicorn
from fastapi import Depends, FastAPI, HTTPException, Request, Response
from fastapi.responses import HTMLResponse, JSONResponse, PlainTextResponse, RedirectResponse
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect

from manihot.photos.decode import decode_photo
from manihot.photos.faults import PhotoFault
from manihot.records.csv_files import csv_text
from manihot.report.thumbnails import encode
from manihot.review.answers import FIRST, SECOND, Answer
from manihot.review.database import LEAD, StorageError
from manihot.review.lead_page import render_lead_page
from manihot.review.page import render_page
from manihot.review.pictures import Picture, draw
from manihot.review.team import Team

COOKIE = "manihot_review"
MONTH = 30 * 86_400  # seconds that a browser stays signed in
MOST_BODY = 1_000_000  # bytes of answers in one request
BODY_SECONDS = 10.0  # for sending one
MOST_CONNECTIONS = 1000
MOST_ANSWERS = 500
EDGE = 448  # pixels, as in the page of a few photographs
KEPT = 2000  # small pictures in memory, about 40 kB each
ORIGINAL_QUALITY = 90  # of the JPEG
NOTHING = "default-src 'none'"  # the policy of everything that is no page
HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "X-Frame-Options": "DENY",
    "Cross-Origin-Resource-Policy": "same-origin",
}


class Sent(BaseModel):
    """The body of a request with answers."""

    model_config = ConfigDict(extra="forbid")
    answers: Annotated[list[Answer], Field(max_length=MOST_ANSWERS)]


class Pictures:
    """Photographs of the manifest by their number; one is decoded at a time, small ones are kept."""

    def __init__(self, team: Team) -> None:
        self._root, self._paths = team.manifest.root.resolve(), team.manifest.paths
        self._lock = threading.Lock()
        self.small = lru_cache(KEPT)(self._small)

    def path(self, number: int) -> Path | None:
        """The file of a photograph; None for no photograph, or one that lies outside the manifest's folder."""
        if not 0 <= number < len(self._paths):
            return None
        path = self._paths[number].resolve()
        return path if path.is_relative_to(self._root) else None

    def _small(self, number: int) -> Picture:
        path = self.path(number)
        if path is None:
            return Picture(fault="no such photograph")
        with self._lock:
            return draw(path, EDGE)

    def original(self, number: int) -> bytes | None:
        """A JPEG of the whole photograph, upright; None where it can't be read."""
        path = self.path(number)
        if path is None:
            return None
        with self._lock:
            try:
                return encode(decode_photo(path), "JPEG", ORIGINAL_QUALITY)
            except PhotoFault:
                return None


def make_app(team: Team) -> FastAPI:
    """The application of a review."""
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    _add_guards(app)
    _add_pages(app, team)
    _add_answers(app, team)
    _add_exports(app, team)
    return app


def serve(team: Team, host: str, port: int) -> None:
    """Answer until the process is stopped; requests that have begun are finished."""
    uvicorn.run(
        make_app(team),
        host=host,
        port=port,
        log_level="warning",
        access_log=False,
        server_header=False,
        limit_concurrency=MOST_CONNECTIONS,
        timeout_graceful_shutdown=int(BODY_SECONDS),
    )


def _signed_in(request: Request) -> str:
    """The reviewer whose cookie this is; 401 without one."""
    found = request.app.state.team.database.who(request.cookies.get(COOKIE, ""))
    if found is None:
        raise HTTPException(401, "open the link that you were given")
    return str(found)


def _lead(reviewer: Annotated[str, Depends(_signed_in)]) -> str:
    if reviewer != LEAD:
        raise HTTPException(403, "only the lead may see this")
    return reviewer


Reviewer = Annotated[str, Depends(_signed_in)]
Lead = Annotated[str, Depends(_lead)]


def _add_guards(app: FastAPI) -> None:
    @app.middleware("http")
    async def guard(request: Request, go_on: Callable[[Request], Awaitable[Response]]) -> Response:
        origin = request.headers.get("origin")
        if request.method not in ("GET", "HEAD") and origin and urlsplit(origin).netloc != request.headers.get("host"):
            response: Response = JSONResponse({"detail": "not from this page"}, 403)
        else:
            response = await go_on(request)
        for name, value in HEADERS.items():
            response.headers[name] = value
        response.headers.setdefault("Content-Security-Policy", NOTHING)
        response.headers.setdefault("Cache-Control", "no-store")
        return response

    @app.exception_handler(StorageError)
    async def not_stored(_: Request, error: StorageError) -> Response:
        what = "the disk of the server is full" if error.full else "the database does not answer"
        return JSONResponse({"detail": what}, 507 if error.full else 503, {"Retry-After": "5"})


def _add_pages(app: FastAPI, team: Team) -> None:
    app.state.team = team
    pictures = Pictures(team)
    pages = {number: _page(team, number) for number in (FIRST, SECOND)}

    @app.get("/join/{token}")
    def join(token: str, request: Request) -> Response:
        name = team.database.who(token)
        if name is None:
            raise HTTPException(401, "this link is not valid any more: ask the lead for a new one")
        response = RedirectResponse("/lead" if name == LEAD else "/", 303)
        safe = request.url.scheme == "https"
        response.set_cookie(COOKIE, token, max_age=MONTH, httponly=True, samesite="lax", secure=safe)
        return response

    @app.get("/")
    def review(_: Reviewer) -> Response:
        return pages[FIRST]()

    @app.get("/adjudicate")
    def adjudicate(_: Lead) -> Response:
        return pages[SECOND]()

    @app.get("/lead")
    def lead(_: Lead) -> Response:
        text, policy = render_lead_page(team)
        return HTMLResponse(text, headers={"Content-Security-Policy": policy})

    @app.get("/photo/{number}/small")
    def small(number: int, _: Reviewer) -> Response:
        return _image(pictures.small(number).content, "image/webp")

    @app.get("/photo/{number}/original")
    def original(number: int, _: Reviewer) -> Response:
        return _image(pictures.original(number), "image/jpeg")

    @app.get("/favicon.ico")
    def icon() -> Response:
        return Response(status_code=204)

    @app.get("/healthy")
    def healthy() -> Response:
        return PlainTextResponse("ok")


def _page(team: Team, number: int) -> Callable[[], Response]:
    text, policy = render_page(team.run, team.facts(number), [], len(team.queue.table), team.queue.rest)

    def make() -> Response:
        return HTMLResponse(text, headers={"Content-Security-Policy": policy + "; frame-ancestors 'none'"})

    return make


def _image(content: bytes | None, kind: str) -> Response:
    if not content:
        raise HTTPException(404, "no such photograph, or it can't be read")
    return Response(content, media_type=kind, headers={"Cache-Control": "private, max-age=86400"})


def _add_answers(app: FastAPI, team: Team) -> None:
    @app.get("/api/state")
    def state(reviewer: Reviewer, round: int = FIRST) -> dict[str, Any]:
        return team.state(reviewer, _round(round, reviewer))

    @app.get("/api/next")
    def following(reviewer: Reviewer, round: int = FIRST) -> dict[str, Any]:
        return team.next(reviewer, _round(round, reviewer))

    @app.get("/api/progress")
    def progress(reviewer: Reviewer, round: int = FIRST) -> dict[str, Any]:
        return team.progress(reviewer, _round(round, reviewer))

    @app.post("/api/answers")
    async def answers(request: Request) -> dict[str, Any]:
        reviewer = await run_in_threadpool(_signed_in, request)
        if request.headers.get("content-type", "").partition(";")[0].strip() != "application/json":
            raise HTTPException(415, "answers are sent as JSON")
        try:
            sent = Sent.model_validate_json(await _body(request))
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            raise HTTPException(422, f"{'.'.join(map(str, first['loc']))}: {first['msg']}") from None
        for line in sent.answers:
            if wrong := team.check(line, reviewer):
                raise HTTPException(422, wrong)
        return {"stored": await run_in_threadpool(team.database.append, sent.answers)}


def _round(number: int, reviewer: str) -> int:
    if number not in (FIRST, SECOND):
        raise HTTPException(422, "round 1 or 2")
    if number == SECOND and reviewer != LEAD:
        raise HTTPException(403, "only the lead adjudicates")
    return number


async def _body(request: Request) -> bytes:
    """The body; 413 beyond MOST_BODY, before more of it is read, 408 where it comes too slowly or not to its end."""
    parts, size = [], 0
    try:
        async with asyncio.timeout(BODY_SECONDS):
            async for part in request.stream():
                size += len(part)
                if size > MOST_BODY:
                    raise HTTPException(413, f"more than {MOST_BODY:,} bytes")
                parts.append(part)
    except (TimeoutError, ClientDisconnect):
        raise HTTPException(408, f"the answers did not arrive within {BODY_SECONDS:g} s") from None
    return b"".join(parts)


def _add_exports(app: FastAPI, team: Team) -> None:
    @app.get("/export/decisions.csv")
    def decided(_: Lead) -> Response:
        return _file(csv_text(team.together().decided), "text/csv", "decisions.csv")

    @app.get("/export/answers.jsonl")
    def lines(_: Lead) -> Response:
        rows = (json.dumps(line.model_dump(mode="json"), ensure_ascii=False) for line in team.database.answers())
        return _file("".join(f"{row}\n" for row in rows), "application/x-ndjson", "answers.jsonl")


def _file(text: str, kind: str, name: str) -> Response:
    headers = {"Content-Disposition": f'attachment; filename="{name}"'}
    return Response(text.encode("utf-8", "surrogateescape"), media_type=f"{kind}; charset=utf-8", headers=headers)
