"""The phone page as an app: a service worker keeps it whole, of one version, and it works without a network."""

from __future__ import annotations

import functools
import html
import http.server
import json
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from manihot.errors import SettingsError
from manihot.export import phone
from phone_page import TITLE, Opened, photographs
from review_browser import until


class Quiet(http.server.SimpleHTTPRequestHandler):
    """Files of a folder; no line for each."""

    def log_message(self, *args: object) -> None:
        """Says nothing."""

    def guess_type(self, path: Any) -> str:
        """With the encoding that most hosts name, whatever a page is in."""
        kind = super().guess_type(path)
        return f"{kind}; charset=utf-8" if kind.startswith("text/") else kind


class Host:
    """A folder over http://localhost, which counts as secure; it can be taken away."""

    def __init__(self, folder: Path) -> None:
        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(folder)))
        self.address = f"http://localhost:{self.server.server_port}/"
        self.thread = threading.Thread(target=self.server.serve_forever, daemon=True)
        self.thread.start()

    def stop(self) -> None:
        """No answers from now on."""
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()


@pytest.fixture
def host(phone_export: Path) -> Iterator[Host]:
    made = Host(phone_export / "app")
    yield made
    made.stop()


def installed(opened: Opened) -> None:
    until(opened.page, "document.getElementById('installed').textContent !== ''", 120)


def test_the_app_works_when_the_host_is_gone(phone_export: Path, chromium: Any):
    host = Host(phone_export / "app")
    opened = Opened(chromium, host.address, offline=False)
    assert opened.tested["good"]
    installed(opened)
    assert "without a network" in opened.page.inner_text("#installed")
    host.stop()
    opened.page.close()
    opened.context.set_offline(True)
    opened.open(host.address + "?from=icon")
    assert opened.tested["good"]
    answers = opened.give(photographs(phone_export)[:1])
    page = Opened(chromium, phone_export / "page.html")
    assert page.give(photographs(phone_export)[:1])[0]["probabilities"] == answers[0]["probabilities"]
    assert not [text for text in opened.said if "ERR_INTERNET" not in text]


def test_the_file_works_from_a_host_that_names_another_encoding(phone_export: Path, chromium: Any):
    host = Host(phone_export)
    opened = Opened(chromium, host.address + "page.html", offline=False)
    assert opened.tested["good"] and opened.page.inner_text("h1") == TITLE
    opened.give(photographs(phone_export)[:1])
    host.stop()
    assert opened.asked[0].endswith("page.html")
    assert {url.split(":")[0] for url in opened.asked[1:]} <= {"blob", "data"}


def test_the_app_can_be_installed(phone_export: Path, chromium: Any, host: Host):
    opened = Opened(chromium, host.address, offline=False)
    installed(opened)
    session = opened.context.new_cdp_session(opened.page)
    assert session.send("Page.getAppManifest")["errors"] == []
    wrong = [one["errorId"] for one in session.send("Page.getInstallabilityErrors")["installabilityErrors"]]
    assert [one for one in wrong if one != "in-incognito"] == []


def test_a_newer_version_waits_and_then_replaces_the_older_one(phone_export: Path, chromium: Any, tmp_path: Path):
    folder = shutil.copytree(phone_export / "app", tmp_path / "app")
    host = Host(folder)
    opened = Opened(chromium, host.address, offline=False)
    installed(opened)
    changes = {
        "sw.js": ("const NAME = `manihot ${self.registration.scope} ", "2"),
        "index.html": ("<main>", "<p id=new>"),
    }
    for name, (after, more) in changes.items():
        text = (folder / name).read_text(encoding="utf-8")
        assert text.count(after) == 1
        (folder / name).write_text(text.replace(after, after + more), encoding="utf-8")
    opened.page.close()
    opened.open(host.address)
    installed(opened)
    assert "newer version" in opened.page.inner_text("#installed") and not opened.page.query_selector("#new")
    opened.page.close()
    time.sleep(0.5)
    host.stop()
    opened.open(host.address)
    assert opened.page.query_selector("#new") and opened.tested["good"]


def test_every_file_is_kept_and_nothing_is_asked_of_others(phone_export: Path):
    folder = phone_export / "app"
    files = {one.relative_to(folder).as_posix() for one in folder.rglob("*") if one.is_file()}
    worker = (folder / "sw.js").read_text(encoding="utf-8")
    kept = json.loads(worker.split("FILES = ")[1].split(";")[0])
    assert set(kept) == (files - {"sw.js", "index.html"}) | {"./"}
    page = html.unescape((folder / "index.html").read_text(encoding="utf-8"))
    assert "connect-src 'self'" in page and "https://" not in page


def test_an_app_never_overwrites_another_folder(phone_export: Path, tmp_path: Path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos/sw.js").write_text("something else", encoding="utf-8")
    with pytest.raises(SettingsError, match="other files"):
        phone.check_app(tmp_path / "photos")
    with pytest.raises(SettingsError, match="other files"):
        phone.check_app(tmp_path / "photos/sw.js")
    phone.check_app(phone_export / "app")
    phone.check_app(tmp_path / "none")
