"""Archives of photographs, answers and corrections that phones hand in: checked, and kept as they came."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import shutil
import sys
from asyncio.subprocess import PIPE
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from starlette.requests import Request

from manihot.records.files import explain_os_error, temporary_name
from manihot.serve.decoders import bare_environment, end_process
from manihot.serve.refusals import Refused
from manihot.serve.service import ENTRY, ZIP, declared, parts_of, too_large

MOST = 2_000_000_000  # bytes of one archive, as the page writes them
SPARE = 1_000_000_000  # bytes of the disk that stay free
SLOWEST = 5_000  # bytes a second, on average, that a phone must send
AT_ONCE = 8  # archives
CHECKS_AT_ONCE = 2  # processes that look through one, of 160 MB and a second to start
MOST_FILES = 20_000
CHECK_SECONDS = 300.0  # for looking through one, while others wait


class Returns:
    """The folder of archives, each under the first 16 digits of its sha256. folder: None where none are taken."""

    def __init__(self, folder: Path | None, seconds: float) -> None:
        self.folder, self.seconds, self.one = folder, seconds, asyncio.Semaphore(AT_ONCE)
        self.checking = asyncio.Semaphore(CHECKS_AT_ONCE)

    async def take(self, request: Request) -> dict[str, Any]:
        """Keep the archive that is the body; Refused where it can't be."""
        folder, size = self.folder, declared(request)
        if folder is None:
            raise Refused(404, "no_returns", "this server takes no returns", "start it with --returns FOLDER")
        if size is not None and size > MOST:
            raise too_large(MOST)
        if shutil.disk_usage(folder).free < SPARE + 3 * (MOST if size is None else size):  # packed, unpacked, and room
            raise Refused(507, "disk_full", "the server's disk is full", "tell whoever runs it")
        if self.one.locked():
            raise Refused(429, "busy", "other archives are coming in", "send it again later", {"Retry-After": "10"})
        async with self.one:
            return await self._keep(request, folder)

    async def _keep(self, request: Request, folder: Path) -> dict[str, Any]:
        temporary = temporary_name(folder / f"{os.urandom(8).hex()}.zip")
        try:
            digest = await self._write(request, temporary)
            async with self.checking:
                found = await check_returns(temporary)
            kept = folder / f"{digest[:16]}.zip"
            known = kept.exists()
            temporary.replace(kept)
        except OSError as error:
            raise Refused(507, "disk_full", explain_os_error(error, folder).what, "tell whoever runs it") from error
        finally:
            temporary.unlink(missing_ok=True)
        return {"kept": kept.name, "known": known, **found}

    async def _write(self, request: Request, path: Path) -> str:
        digest = hashlib.sha256()
        with path.open("wb") as file:
            async for part in parts_of(request, MOST, self.seconds, SLOWEST):
                digest.update(part)
                file.write(part)
            file.flush()
            await asyncio.to_thread(os.fsync, file.fileno())
        return digest.hexdigest()


async def check_returns(path: Path) -> dict[str, Any]:
    """How many photographs an archive holds, and how many are broken; Refused where it is none of the page's."""
    with path.open("rb") as file:
        if file.read(4) != ZIP:
            raise Refused(422, "damaged", "it is not a zip", "hand in the file as it is")
        file.seek(0)
        if sum(block.count(ENTRY) for block in iter(lambda: file.read(1 << 20), b"")) > MOST_FILES:
            raise Refused(413, "too_large", f"more than {MOST_FILES} files", "hand them in on several days")
    with TemporaryDirectory(prefix=".manihot-check-", dir=path.parent, ignore_cleanup_errors=True) as folder:
        words = (sys.executable, "-m", "manihot.serve.check_returns", str(path), folder)
        process = await asyncio.create_subprocess_exec(*words, stdout=PIPE, env=bare_environment())
        try:
            said, _ = await asyncio.wait_for(process.communicate(), CHECK_SECONDS)
            found: dict[str, Any] = json.loads(said)
        except (TimeoutError, ValueError) as error:
            raise Refused(422, "damaged", "it can't be looked through", "hand in the file as it is") from error
        finally:
            await end_process(process)
    if "error" in found or not found["photographs"]:
        said_of_it = found.get("error", "none of its photographs can be read")
        raise Refused(422, "damaged", str(said_of_it), str(found.get("remedy", "hand in the file as it is")))
    return found
