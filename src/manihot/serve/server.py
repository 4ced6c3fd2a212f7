"""`manihot serve`: uvicorn around the application, with limits of its own for slow and many connections."""

from __future__ import annotations

import asyncio
import signal
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from manihot.errors import SettingsError
from manihot.export.bundle import Bundle
from manihot.networks.runner import choose_device
from manihot.progress import say, warn
from manihot.records.files import explain_os_error, remove_leftovers
from manihot.serve.app import make_app
from manihot.serve.guard import Tokens, write_log
from manihot.serve.service import Service
from manihot.settings.options import Compute, ServerOptions

HEAD_SECONDS = 10.0  # until a connection's request line and headers must be there
MOST_CONNECTIONS = 1000
LOOPBACK = ("127.0.0.1", "::1", "localhost")
PAGE = "phone.html"


class ImpatientProtocol(H11Protocol):
    """HTTP/1.1 that closes a connection whose request doesn't come, and those that are too many."""

    head_seconds = HEAD_SECONDS
    late: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """A new connection."""
        super().connection_made(transport)
        if len(self.connections) > MOST_CONNECTIONS:
            transport.abort()
            return
        self._watch()

    def data_received(self, data: bytes) -> None:
        """Bytes: of a request that is at work, or of one whose head isn't complete."""
        super().data_received(data)
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        """The connection's end."""
        self._rest()
        super().connection_lost(exc)

    def _watch(self) -> None:
        if self.cycle is not None and not self.cycle.response_complete:
            self._rest()
        elif self.late is None:
            self.late = self.loop.call_later(self.head_seconds, self.transport.abort)

    def _rest(self) -> None:
        if self.late is not None:
            self.late.cancel()
            self.late = None


class DrainingServer(uvicorn.Server):
    """uvicorn that ends without raising the signal again: what is under way is answered, then it returns."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """SIGINT and SIGTERM end it; a second one at once."""
        before = {name: signal.signal(name, self.handle_exit) for name in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for name, handler in before.items():
                signal.signal(name, handler)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Answer what is under way, then end."""
        say("Draining: no new connections; what is under way is answered")
        await super().shutdown(sockets)


def run_server(export: Path, options: ServerOptions, compute: Compute) -> tuple[int, float]:
    """Serve until SIGTERM or Ctrl-C; how many photographs were classified, and for how many seconds it ran."""
    options, tokens = _checked(options, export), Tokens.load(options.tokens)
    bundle = Bundle.load(Path(export), options.precision, device=choose_device(compute.device))
    service = Service(bundle, options, compute.workers)
    listening = _listen(options)
    host, port = listening.getsockname()[:2]
    write_log()
    say(f"Serving {export} at http://{f'[{host}]' if ':' in host else host}:{port}/   Ctrl-C ends it")
    if options.host not in LOOPBACK and not tokens.names:
        warn("whoever reaches this address may use it; --tokens FILE asks for a token")
    ImpatientProtocol.head_seconds = min(HEAD_SECONDS, options.seconds)
    config = uvicorn.Config(
        make_app(service, tokens),
        http=ImpatientProtocol,
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=15,
        timeout_graceful_shutdown=int(options.seconds) or 1,
        h11_max_incomplete_event_size=32768,
    )
    started = time.monotonic()
    try:
        DrainingServer(config).run(sockets=[listening])
    finally:
        listening.close()
    done = service.counters.photographs.values.get(("classified",), 0.0)
    return int(done), time.monotonic() - started


def _checked(options: ServerOptions, export: Path) -> ServerOptions:
    """The options with the page and the folder looked up; SettingsError for what can't be."""
    for name, low, high in (("queue", 1, 100_000), ("batch", 1, 1024), ("max_mb", 0.001, 2000), ("seconds", 1, 3600)):
        if not low <= getattr(options, name) <= high:
            raise SettingsError(
                f"--{name.replace('_', '-')} {getattr(options, name)}: out of range", f"{low:g} to {high:g}"
            )
    page = options.page or (Path(export) / PAGE if (Path(export) / PAGE).is_file() else None)
    if page is not None and not Path(page).is_file():
        raise SettingsError(f"--page {page}: there is no file", "manihot export RUN --phone page.html writes one")
    if options.returns is not None:
        try:
            Path(options.returns).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise explain_os_error(error, Path(options.returns)) from error
        remove_leftovers(Path(options.returns))
    return replace(options, page=page, returns=options.returns and Path(options.returns))


def _listen(options: ServerOptions) -> socket.socket:
    """A listening socket; SettingsError where the address can't be had."""
    family = socket.AF_INET6 if ":" in options.host else socket.AF_INET
    found = socket.socket(family, socket.SOCK_STREAM)
    found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        found.bind((options.host, options.port))
        found.listen(1024)
    except (OSError, OverflowError) as error:
        found.close()
        raise SettingsError(
            f"--host {options.host} --port {options.port}: can't listen there ({error})",
            "choose another --port, or 0 for any free one",
        ) from error
    found.set_inheritable(False)
    return found
