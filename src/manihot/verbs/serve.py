"""The verb that serves an exported model over HTTP."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from manihot.extras import need_serve
from manihot.settings.options import HERE, USUAL_SERVER
from manihot.verbs.options import On, Place, Server
from manihot.verbs.results import ServeResult


def serve(
    export: Annotated[Place, Parameter(help="A folder that `manihot export` wrote.")],
    *,
    server: Server = USUAL_SERVER,
    compute: On = HERE,
) -> ServeResult:
    """Answer photographs over HTTP, until Ctrl-C or SIGTERM.

    POST /v1/classify takes a photograph's bytes, or a zip of several; /v2 is the Open Inference Protocol, /metrics is
    for Prometheus, / shows the phone page, and POST /v1/returns takes what phones hand in. It listens on this machine
    alone, unless --host says otherwise.
    """
    need_serve("`manihot serve`")
    from manihot.serve.server import run_server

    photographs, seconds = run_server(Path(export), server, compute)
    return ServeResult(photographs=photographs, seconds=seconds)
