"""The review on a server: signing in, handing out, agreement, hostile requests, and no confirmed answer ever lost."""

from __future__ import annotations

import hashlib
import json
import socket
import sqlite3
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pandas as pd
import pytest
from fastapi.testclient import TestClient

import manihot
from manihot.audit.decision_files import read_decisions
from manihot.errors import RunFolderError, SettingsError
from manihot.records.manifest import Manifest
from manihot.records.run_places import RunPlaces
from manihot.review import database as database_module
from manihot.review.answers import Answer
from manihot.review.database import LEAD, Database, sqlite_url
from manihot.review.page import review_digest
from manihot.review.ranking import BATCH, make_queue
from manihot.review.server import MOST_BODY, make_app
from manihot.review.team import Team, invite
from manihot.settings.options import ReviewTeam
from review_browser import find_axe, serious_findings, start_browser, until
from review_runs import CLASSES, answer, digest_of, small_review
from review_team import kill_under_load, postgres, postgres_programs, served


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_review(tmp_path_factory.mktemp("team"), photos=75)


@pytest.fixture(scope="module")
def server_of_postgres() -> Iterator[str]:
    """A PostgreSQL on a socket; skips without it."""
    pytest.importorskip("psycopg")
    if postgres_programs() is None:
        pytest.skip("PostgreSQL is not installed (Debian: apt-get install postgresql)")
    with postgres() as url:
        yield url


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty database of each kind."""
    if request.param == "sqlite":
        return sqlite_url(tmp_path / "answers.sqlite")
    import psycopg

    server = request.getfixturevalue("server_of_postgres")
    name = "t" + hashlib.sha256(str(tmp_path).encode()).hexdigest()[:20]
    with psycopg.connect(server, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}")
    return server.replace("/postgres?", f"/{name}?")


class Reviewing:
    """A team and a signed in client of each reviewer, without a network."""

    def __init__(self, run: Path, url: str, names: tuple[str, ...], per_photo: int) -> None:
        manifest = Manifest.load(RunPlaces(run).manifest)
        self.database = Database(url, review_digest(manifest))
        options = ReviewTeam(reviewers=names, reviewers_per_photo=per_photo)
        self.tokens = invite(self.database, options)
        self.team = Team(run, manifest, make_queue(run), self.database, per_photo)
        self.app = make_app(self.team)
        self.digest = review_digest(manifest)
        self.clients = {name: self.client(token) for name, token in self.tokens.items()}

    def client(self, token: str) -> TestClient:
        made = TestClient(self.app, base_url="http://testserver", raise_server_exceptions=False)
        assert made.get(f"/join/{token}", follow_redirects=False).status_code == 303
        return made

    def send(self, name: str, *lines: dict[str, Any]) -> Any:
        return self.clients[name].post("/api/answers", json={"answers": list(lines)})

    def say(self, name: str, image_id: str, label: str, **other: Any) -> None:
        found = self.send(name, answer(self.digest, name, image_id, label=label, **other))
        assert found.status_code == 200, found.text

    def batch(self, name: str, number: int = 1) -> list[str]:
        return [item["id"] for item in self.clients[name].get(f"/api/next?round={number}").json()["items"]]


@pytest.fixture
def reviewing(run: Path, url: str) -> Iterator[Reviewing]:
    made = Reviewing(run, url, ("ana", "ben", "cy"), 2)
    yield made
    made.database.close()


# ------------------------------------------------------------------------------------------------ handing out


def test_each_photograph_goes_to_as_many_people_as_asked(reviewing: Reviewing):
    ids = list(reviewing.team.queue.table["image_id"])
    assert reviewing.batch("ana") == ids[:BATCH] and reviewing.batch("ben") == ids[:BATCH]
    assert reviewing.batch("cy") == ids[BATCH:]  # two people hold the first fifty
    assert reviewing.batch("ana") == ids[:BATCH]  # asking again hands out nothing more
    for image_id in ids[:BATCH]:
        reviewing.say("ana", image_id, "green")
    assert reviewing.batch("ana") == ids[BATCH:]
    reviewing.say("ana", ids[0], "", verdict="undo")
    assert reviewing.batch("ana")[0] == ids[0]
    state = reviewing.clients["ana"].get("/api/state").json()
    assert len(state["items"]) == 75 and len(state["answers"]) == 51 and state["reviewer"] == "ana"
    assert state["progress"]["answered"] == 49


def test_a_photograph_that_its_reviewer_left_lying_goes_to_others(
    reviewing: Reviewing, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(database_module, "LEASE", -1.0)
    first = reviewing.batch("ana")
    assert reviewing.batch("ben") == first == reviewing.batch("cy")


def test_disagreements_are_adjudicated_and_exported(reviewing: Reviewing, run: Path, tmp_path: Path):
    ids = list(reviewing.team.queue.table["image_id"])
    for k, image_id in enumerate(ids[:10]):
        reviewing.say("ana", image_id, "green")
        reviewing.say("ben", image_id, CLASSES[2] if k in (3, 7) else "green")
    reviewing.say("ana", ids[20], "green")  # one answer of two: not decided yet
    lead = reviewing.clients[LEAD]
    assert reviewing.batch(LEAD, 2) == [ids[3], ids[7]]
    items = lead.get("/api/next?round=2").json()["items"]
    assert sorted(items[0]["said"]) == sorted(["green", CLASSES[2]])
    text = lead.get("/lead").text
    assert "found so far" in text and "expected, in random order" in text  # the curve
    assert "2 disagreements to adjudicate" in text and "ana and ben" in text and "</script><b>" not in text
    reviewing.say(LEAD, ids[3], CLASSES[0], round=2)
    assert reviewing.batch(LEAD, 2) == [ids[7]]
    assert "1 disagreement to adjudicate" in lead.get("/lead").text
    path = tmp_path / "decisions.csv"
    path.write_bytes(lead.get("/export/decisions.csv").content)
    table = read_decisions(path, Manifest.load(RunPlaces(run).manifest)).set_index("image_id")
    assert len(table) == 9 and ids[7] not in table.index and ids[20] not in table.index
    assert table.loc[ids[3], "reason"].startswith("adjudicated by lead")
    manihot.clean(run, out=tmp_path / "cleaned", decisions=path)
    lines = [json.loads(text) for text in lead.get("/export/answers.jsonl").text.splitlines()]
    assert len(lines) == 22 and all(Answer.model_validate(line) for line in lines)


def test_two_people_and_two_windows_on_one_photograph_lose_nothing(reviewing: Reviewing):
    image_id = reviewing.team.queue.table["image_id"][0]
    other = reviewing.client(reviewing.tokens["ana"])  # the same person, in a second browser
    one, two = (answer(reviewing.digest, "ana", image_id, label=label) for label in ("green", CLASSES[2]))
    assert reviewing.send("ana", one).json() == {"stored": [one["key"]]}
    assert other.post("/api/answers", json={"answers": [two, one]}).json() == {"stored": [two["key"], one["key"]]}
    reviewing.say("ben", image_id, "green")
    assert [line.key for line in reviewing.database.answers()][:2] == [one["key"], two["key"]]
    assert reviewing.team.disagreements() == {image_id: (CLASSES[2], "green")}


# ------------------------------------------------------------------------------------------------ who may what


def test_links_end_with_new_ones_and_only_their_digests_are_kept(reviewing: Reviewing, tmp_path: Path):
    assert len({*reviewing.tokens.values()}) == 4 and all(len(token) == 43 for token in reviewing.tokens.values())
    again = invite(reviewing.database, ReviewTeam(reviewers=("ana",)))
    assert again == {}  # those who have a link keep it
    new = invite(reviewing.database, ReviewTeam(reviewers=("ana",), new_links=True))
    assert set(new) == {"ana", LEAD}
    assert reviewing.clients["ana"].get("/api/state").status_code == 401
    assert reviewing.clients["ben"].get("/api/state").status_code == 200
    file = tmp_path / "answers.sqlite"
    if file.exists():
        kept = b"".join(path.read_bytes() for path in tmp_path.glob("answers.sqlite*"))
        assert not any(token.encode() in kept for token in {*reviewing.tokens.values(), *new.values()})


def test_without_a_link_nothing_is_shown(reviewing: Reviewing):
    nobody = TestClient(reviewing.app)
    for path in ("/", "/lead", "/adjudicate", "/api/state", "/api/next", "/photo/0/small", "/export/answers.jsonl"):
        assert nobody.get(path).status_code == 401, path
    assert nobody.post("/api/answers", json={"answers": []}).status_code == 401
    assert nobody.get("/join/wrong").status_code == 401
    assert nobody.get("/api/state", headers={"Cookie": b"manihot_review=\xe9\xff"}).status_code == 401
    for path in ("/lead", "/adjudicate", "/export/decisions.csv", "/api/next?round=2"):
        assert reviewing.clients["ana"].get(path).status_code == 403, path
    assert nobody.get("/docs").status_code == nobody.get("/openapi.json").status_code == 404


def test_pages_and_cookies_are_locked_down(reviewing: Reviewing):
    client = TestClient(reviewing.app)
    joined = client.get(f"/join/{reviewing.tokens['ana']}", follow_redirects=False)
    cookie = joined.headers["set-cookie"].lower()
    assert "httponly" in cookie and "samesite=lax" in cookie and joined.headers["location"] == "/"
    for path in ("/", "/api/state", "/photo/0/small"):
        headers = reviewing.clients["ana"].get(path).headers
        assert headers["content-security-policy"].startswith("default-src 'none'"), path
        assert headers["x-content-type-options"] == "nosniff" and headers["referrer-policy"] == "no-referrer"
    policy = reviewing.clients["ana"].get("/").headers["content-security-policy"]
    assert "script-src 'sha256-" in policy and "connect-src 'self'" in policy and "frame-ancestors 'none'" in policy


@pytest.mark.parametrize(
    ("change", "status"),
    [
        ({"reviewer": "ben"}, 422),
        ({"review": "0" * 16}, 422),
        ({"image_id": "../../etc/passwd"}, 422),
        ({"label": "weeds"}, 422),
        ({"round": 2}, 422),
        ({"key": "short"}, 422),
        ({"verdict": "delete"}, 422),
    ],
)
def test_answers_that_no_page_sends_are_refused_whole(reviewing: Reviewing, change: dict[str, Any], status: int):
    image_id = reviewing.team.queue.table["image_id"][0]
    good = answer(reviewing.digest, "ana", image_id)
    assert reviewing.send("ana", good, good | {"key": "a" * 32} | change).status_code == status
    assert reviewing.database.answers() == []


def test_requests_from_elsewhere_or_too_large_are_refused(reviewing: Reviewing):
    client, line = reviewing.clients["ana"], answer(reviewing.digest, "ana", reviewing.team.queue.table["image_id"][0])
    body = json.dumps({"answers": [line]})
    headers = {"Content-Type": "application/json"}
    assert client.post("/api/answers", content=body, headers={"Content-Type": "text/plain"}).status_code == 415
    evil = headers | {"Origin": "http://evil.example"}
    assert client.post("/api/answers", content=body, headers=evil).status_code == 403
    assert client.post("/api/answers", content=b"[" * (MOST_BODY + 1), headers=headers).status_code == 413
    assert client.post("/api/answers", content=b"[" * 5000, headers=headers).status_code == 422
    many = json.dumps({"answers": [line] * 501})
    assert client.post("/api/answers", content=many, headers=headers).status_code == 422
    assert client.post("/api/answers", content=body, headers=headers | {"Origin": "http://testserver"}).is_success


def test_only_photographs_of_the_folder_come_out_and_as_pixels(run: Path, tmp_path: Path):
    secret = tmp_path / "secret.jpg"
    manifest = Manifest.load(RunPlaces(run).manifest)
    secret.write_bytes(manifest.paths[0].read_bytes() + b"after the picture")
    inside = manifest.root / "link.jpg"
    inside.symlink_to(secret)
    try:
        paths = manifest.table["path"].tolist()
        paths[1], paths[2], paths[3] = str(secret), f"../../../{secret.relative_to('/')}", "link.jpg"
        other = replace(manifest, table=manifest.table.assign(path=paths))
        made = Reviewing(run, sqlite_url(tmp_path / "a.sqlite"), ("ana",), 1)
        made.team.manifest = other
        client = TestClient(make_app(made.team), cookies={"manihot_review": made.tokens["ana"]})
        assert client.get("/photo/0/small").headers["content-type"] == "image/webp"
        original = client.get("/photo/0/original")
        assert original.headers["content-type"] == "image/jpeg" and original.content != manifest.paths[0].read_bytes()
        for number in (1, 2, 3, 75, -1):
            for size in ("small", "original"):
                assert client.get(f"/photo/{number}/{size}").status_code == 404, (number, size)
        for path in ("/photo/..%2f..%2fetc%2fpasswd/small", "/photo/0/../../etc/passwd", "/photo/x/small"):
            assert client.get(path).status_code in (404, 422), path
        made.database.close()
    finally:
        inside.unlink()


def test_a_database_of_another_review_or_kind_is_refused(run: Path, tmp_path: Path):
    Database(sqlite_url(tmp_path / "a.sqlite"), "0" * 16).close()
    with pytest.raises(SettingsError, match="other photographs or labels"):
        Database(sqlite_url(tmp_path / "a.sqlite"), "1" * 16)
    for text in ("mysql://host/name", "nothing", "sqlite://"):
        with pytest.raises(SettingsError, match="--database"):
            Database(text, "0" * 16)
    with pytest.raises(RunFolderError, match="can't be used"):
        Database(f"postgresql://nobody@/none?host={tmp_path}", "0" * 16)
    (tmp_path / "b.sqlite").write_text("no database at all, but a text of some length", encoding="utf-8")
    with pytest.raises(RunFolderError, match="can't be used"):
        Database(sqlite_url(tmp_path / "b.sqlite"), "0" * 16)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"reviewers": ("ana",), "reviewers_per_photo": 2}, "can't give 2 answers"),
        ({"reviewers": ("lead",)}, "not a reviewer's name"),
        ({"reviewers": (" ",)}, "not a reviewer's name"),
        ({"reviewers_per_photo": 0}, "somebody has to answer"),
    ],
)
def test_teams_that_can_not_work_are_refused(tmp_path: Path, options: dict[str, Any], said: str):
    made = Database(sqlite_url(tmp_path / "a.sqlite"), "0" * 16)
    with pytest.raises(SettingsError, match=said):
        invite(made, ReviewTeam(**options))
    assert made.people() == []
    made.close()


# ------------------------------------------------------------------------------------------------ nothing is lost


def test_sqlite_writes_through_to_the_disk(tmp_path: Path):
    made = Database(sqlite_url(tmp_path / "a.sqlite"), "0" * 16)
    with made._writing() as connection:
        assert connection.exec_driver_sql("PRAGMA journal_mode").scalar() == "wal"
        assert connection.exec_driver_sql("PRAGMA synchronous").scalar() == 2  # FULL
    made.close()


def test_a_killed_server_loses_no_confirmed_answer(run: Path, url: str, tmp_path: Path):
    found = kill_under_load(run, kills=2, clients=3, database=url)
    assert found["confirmed"] > 20 and found["lost"] == 0 and found["twice"] == 0


@pytest.mark.slow
def test_fifty_kills_lose_no_confirmed_answer(run: Path, url: str):
    found = kill_under_load(run, kills=50, clients=6, database=url)
    print(found)  # for docs/review.md
    assert found["confirmed"] > 1000 and found["lost"] == 0 and found["twice"] == 0


def test_on_a_full_disk_answers_are_not_confirmed_and_go_through_later(run: Path, tmp_path: Path):
    """The server may write 200 kB a file: what it confirmed is there, the rest is sent again to one that may."""
    url, digest = sqlite_url(tmp_path / "full.sqlite"), digest_of(run)
    ids = make_queue(run).table["image_id"].tolist()
    options = ("--reviewers", "ana", "--database", url)
    lines = [answer(digest, "ana", ids[k % len(ids)]) for k in range(3000)]
    parts = [lines[k : k + 100] for k in range(0, len(lines), 100)]
    confirmed, refused = set(), []
    with served(run, *options, log=tmp_path / "log", most_bytes=200_000) as server:
        client = server.client("ana")
        token = client.cookies["manihot_review"]
        for part in parts:
            found = client.post("/api/answers", json={"answers": part})
            if found.status_code == 200:
                confirmed.update(found.json()["stored"])
            else:
                refused.append(part)
                assert found.status_code == 507 and found.json()["detail"] == "the disk of the server is full"
        assert confirmed and refused and client.get("/healthy").text == "ok"
    with sqlite3.connect(tmp_path / "full.sqlite") as plain:
        assert {row[0] for row in plain.execute("SELECT key FROM answers")} == confirmed
    with served(run, *options, log=tmp_path / "log") as server:
        cookies = {"manihot_review": token}  # the link outlives the server
        with httpx.Client(base_url=server.address, cookies=cookies, timeout=30) as client:
            for part in [*refused, *parts[:2]]:
                assert client.post("/api/answers", json={"answers": part}).status_code == 200
    kept = Database(url, digest)
    assert sorted(line.key for line in kept.answers()) == sorted(line["key"] for line in lines)
    kept.close()


def test_slow_bodies_are_cut_off_and_do_not_keep_the_server_from_ending(run: Path, tmp_path: Path):
    with served(
        run, "--reviewers", "ana", "--database", sqlite_url(tmp_path / "a.sqlite"), log=tmp_path / "log"
    ) as one:
        cookie = f"manihot_review={one.client('ana').cookies['manihot_review']}"
        head = f"POST /api/answers HTTP/1.1\r\nHost: x\r\nCookie: {cookie}\r\nContent-Type: application/json\r\n"
        slow, gone = (socket.create_connection(("127.0.0.1", one.port), timeout=60) for _ in range(2))
        for connection in (slow, gone):
            connection.sendall(f"{head}Content-Length: 100\r\n\r\n[".encode())
        gone.close()
        assert slow.recv(100).startswith(b"HTTP/1.1 408")
        slow.close()
        with socket.create_connection(("127.0.0.1", one.port), timeout=60) as late:
            late.sendall(f"{head}Content-Length: 100\r\n\r\n[".encode())
            one.process.terminate()
            one.process.join(60)
            assert one.process.exitcode is not None
        assert "Traceback" not in (tmp_path / "log").read_text(encoding="utf-8").split("Shutting down")[0]


# ------------------------------------------------------------------------------------------------ browsers


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    sync_api = pytest.importorskip("playwright.sync_api")
    with sync_api.sync_playwright() as play:
        started = start_browser(play)
        yield started
        started.close()


SAVED = "document.getElementById('saved').textContent === 'all answers are saved'"


def test_two_browsers_review_and_the_lead_adjudicates(run: Path, browser: Any, tmp_path: Path):
    axe = find_axe()
    url = sqlite_url(tmp_path / "a.sqlite")
    options = ("--reviewers", "ana", "ben", "--reviewers-per-photo", "2", "--database", url)
    said: list[str] = []
    with served(run, *options, log=tmp_path / "log") as server:

        def go(name: str, path: str = "") -> Any:
            context = browser.new_context(viewport={"width": 1280, "height": 900})
            page = context.new_page()
            page.on("console", lambda message: said.append(message.text))
            page.on("pageerror", lambda error: said.append(str(error)))
            page.goto(server.address + server.links[name])
            if path:
                page.goto(server.address + path)
            if "/lead" not in page.url:
                page.wait_for_selector("html[data-ready]", timeout=60_000)
                page.wait_for_selector("#photo img")
            return page

        ana, ben, second = go("ana"), go("ben"), go("ana")
        for page, keys in ((ana, "2n22"), (ben, "2222"), (second, "3")):
            for key in keys:
                page.keyboard.press(key)
            until(page, SAVED)
        ana.keyboard.press("u")
        ana.keyboard.press("2")
        until(ana, SAVED)
        ana.reload()
        ana.wait_for_selector("html[data-ready]", timeout=60_000)
        assert ana.inner_text("#count").startswith("4 of ")
        assert serious_findings(ana, axe) == []
        lead = go(LEAD)
        assert "2 disagreements to adjudicate" in lead.inner_text("main") and serious_findings(lead, axe) == []
        judge = go(LEAD, "/adjudicate")
        assert "Answers so far: " in judge.inner_text("#said") and serious_findings(judge, axe) == []
        judge.keyboard.press("2")
        until(judge, SAVED)
        lead.reload()
        assert "1 disagreement to adjudicate" in lead.inner_text("main")
        server.kill()
        ben.keyboard.press("2")
        ben.wait_for_selector("#notice:not([hidden])")
        assert "1 answers are not on the server yet" in ben.inner_text("#notice")
    lines = Database(url, digest_of(run)).answers()
    assert len(lines) == 12 and not [text for text in said if "ERR_CONNECTION" not in text]
    table = pd.DataFrame([line.model_dump() for line in lines])
    assert table["reviewer"].value_counts().to_dict() == {"ana": 7, "ben": 4, LEAD: 1}
