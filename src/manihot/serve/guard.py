"""What stands around every request: tokens, limits of time, one line of log, and headers; a pure ASGI middleware.

The log never holds a photograph, a token, an address, or anything else that a client chose, but for the method and the
path of a route that exists.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
import logging
import os
import re
import sys
import time
from collections.abc import Mapping
from pathlib import Path

from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from manihot.errors import SettingsError
from manihot.serve.counters import Counters
from manihot.serve.refusals import Refused

OPEN = ("/", "/returns", "/v2/health/live", "/v2/health/ready")  # without a token
PAGE_SECONDS = 1800.0  # 10 MB at 6 kB/s
OWN_TIME = ("/v1/returns",)  # these watch their time themselves
DROPPED, DROP_SECONDS = 64 << 20, 2.0  # of a body that is refused, read so that the client sees the answer
SHORTEST_TOKEN = 16  # characters
HEADERS = (
    (b"x-content-type-options", b"nosniff"),
    (b"cache-control", b"no-store"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-resource-policy", b"same-origin"),
)
log = logging.getLogger("manihot.serve")


class Tokens:
    """Who may ask: names by the digest of their token. Empty: everybody."""

    def __init__(self, names: Mapping[bytes, str]) -> None:
        self.names = dict(names)

    @classmethod
    def load(cls, path: Path | None) -> Tokens:
        """A text file with a name and a token on each line; SettingsError for anything else."""
        if path is None:
            return cls({})
        try:
            lines = Path(path).read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise SettingsError(
                f"--tokens {path}: can't be read ({error})", "a text file, NAME TOKEN per line"
            ) from error
        found: dict[bytes, str] = {}
        for number, line in enumerate(lines, 1):
            words = line.split()
            if not words or words[0].startswith("#"):
                continue
            if len(words) != 2 or len(words[1]) < SHORTEST_TOKEN or not re.fullmatch(r"[\w.-]{1,64}", words[0], re.A):
                raise SettingsError(
                    f"--tokens {path}, line {number}: not a name and a token of at least {SHORTEST_TOKEN} characters",
                    "NAME TOKEN; python -c 'import secrets; print(secrets.token_urlsafe())' makes a token",
                )
            found[_digest(words[1])] = words[0]
        if not found:
            raise SettingsError(f"--tokens {path}: holds no token", "write NAME TOKEN on a line of its own")
        return cls(found)

    def name_of(self, authorization: bytes) -> str | None:
        """Whose token this header holds; None for nobody's. Every token is compared, in constant time."""
        kind, _, token = authorization.partition(b" ")
        given, found = _digest(token.decode("latin-1").strip()), None
        for digest, name in self.names.items():
            if hmac.compare_digest(digest, given):
                found = name
        return found if kind.lower() == b"bearer" else None


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode("utf-8", "replace")).digest()


class JsonLines(logging.Formatter):
    """One JSON object per line."""

    def format(self, record: logging.LogRecord) -> str:
        fields = record.args if isinstance(record.args, Mapping) else {}
        when = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03d}Z"
        return json.dumps({"time": when, "level": record.levelname.lower(), "event": record.msg, **fields})


def write_log() -> None:
    """Send the log to standard error."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines())
    log.handlers[:] = [handler]
    log.setLevel(logging.INFO)
    log.propagate = False


class Guard:
    """The middleware.

    seconds: for a whole request but for the page. names: paths of routes, which alone are logged and counted.
    """

    def __init__(self, app: ASGIApp, counters: Counters, tokens: Tokens, seconds: float, names: frozenset[str]) -> None:
        self.app, self.counters, self.tokens, self.seconds, self.names = app, counters, tokens, seconds, names

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass one request on."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started = time.monotonic()
        exchange = Exchange(scope, receive, send)
        who = self.tokens.name_of(exchange.header(b"authorization"))
        path = scope["path"] if scope["path"] in self.names else "other"
        try:
            if self.tokens.names and who is None and scope["path"] not in OPEN and scope["method"] != "OPTIONS":
                raise Refused(401, "no_token", "this needs a token", "", {"WWW-Authenticate": "Bearer"})
            seconds = None if path in OWN_TIME else PAGE_SECONDS if path in OPEN else self.seconds
            async with asyncio.timeout(seconds):
                await self.app(scope, exchange.receive, exchange.send)
        except ClientDisconnect:
            pass
        except Refused as refused:
            await exchange.answer(refused)
        except TimeoutError:
            await exchange.answer(Refused(503, "slow", f"it took longer than {self.seconds:g} s", "send it again"))
        except Exception as error:
            log.error("error", {"id": exchange.id, "path": path, "type": type(error).__name__, "where": _where(error)})
            await exchange.answer(Refused(500, "error", "the server failed on this; its log says where", "report this"))
        finally:
            took = time.monotonic() - started
            self.counters.requests.add(path, str(exchange.status))
            self.counters.received.add(by=exchange.received)
            self.counters.seconds.add(took)
            if exchange.status == 429:
                self.counters.refused.add()
            said = {"id": exchange.id, "method": scope["method"] if path != "other" else "", "path": path}
            more = {"status": exchange.status, "seconds": round(took, 4), "bytes": exchange.received}
            log.info("request", {**said, **more, **({"token": who} if who else {})})


class Exchange:
    """One request and its answer. status: 499 while nothing was answered, as where the client has gone."""

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.scope, self._receive, self._send = scope, receive, send
        self.id, self.status, self.received = os.urandom(8).hex(), 499, 0
        self.ended = not (self.header(b"content-length") or self.header(b"transfer-encoding"))

    def header(self, name: bytes) -> bytes:
        """A header's first value, b"" without it."""
        return next((bytes(value) for key, value in self.scope["headers"] if key == name), b"")

    async def receive(self) -> Message:
        """The next part of the body."""
        message = await self._receive()
        if message["type"] == "http.request":
            self.received += len(message.get("body", b""))
            self.ended = not message.get("more_body", False)
        else:
            self.ended = True
        return message

    async def send(self, message: Message) -> None:
        """Pass on the answer, with our headers; what the client still sends is dropped first."""
        if message["type"] == "http.response.start":
            self.status = message["status"]
            own = [*HEADERS, (b"x-request-id", self.id.encode())]
            if not self.ended:
                await self._drop()
                own.append((b"connection", b"close"))
            given = {key.lower() for key, _ in message["headers"]}
            message["headers"] = [*message["headers"], *(one for one in own if one[0] not in given)]
        await self._send(message)

    async def answer(self, refused: Refused) -> None:
        """Answer with a refusal, where nothing was answered yet."""
        if self.status == 499:
            response = JSONResponse(refused.to_json(), refused.status, refused.headers)
            await response(self.scope, self.receive, self.send)

    async def _drop(self) -> None:
        """Read a refused body's rest: closing while it comes would reset the connection before the answer is read."""
        if self.header(b"expect"):  # the client waits to be asked for it
            return
        try:
            async with asyncio.timeout(DROP_SECONDS):
                before = self.received
                while not self.ended and self.received - before < DROPPED:
                    await self.receive()
        except TimeoutError:
            pass


def _where(error: BaseException) -> str:
    """File and line of the innermost call, without values."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return "" if trace is None else f"{Path(trace.tb_frame.f_code.co_filename).name}:{trace.tb_lineno}"
