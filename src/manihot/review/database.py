"""The answers of a team in a database: SQLite by default, PostgreSQL by its URL. Lines are appended, never changed.

An answer is confirmed to its reviewer after the transaction that holds it was flushed to disk (SQLite with a
write-ahead log and synchronous=FULL; PostgreSQL as it comes), so that neither a killed server nor a power cut loses it.
Of a token only its SHA-256 is kept.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, DBAPIError

from manihot.errors import MissingExtraError, RunFolderError, SettingsError
from manihot.records.files import explain_os_error
from manihot.review.answers import Answer

PATIENCE = 30  # seconds that SQLite waits for another writer
LOCK = 0x6D616E69  # PostgreSQL's advisory lock while photographs are handed out
LEASE = 1800.0  # seconds that a photograph is kept for the reviewer it was handed to
TOKEN_BYTES = 32
LEAD = "lead"

_tables = sa.MetaData()
_about = sa.Table(
    "about", _tables, sa.Column("name", sa.String, primary_key=True), sa.Column("value", sa.String, nullable=False)
)
_people = sa.Table(
    "reviewers",
    _tables,
    sa.Column("name", sa.String, primary_key=True),
    sa.Column("token_sha256", sa.String, nullable=False),
)
_answers = sa.Table(
    "answers",
    _tables,
    sa.Column("number", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("key", sa.String, nullable=False),
    sa.Column("image_id", sa.String, nullable=False),
    sa.Column("verdict", sa.String, nullable=False),
    sa.Column("label", sa.String, nullable=False),
    sa.Column("reviewer", sa.String, nullable=False),
    sa.Column("at", sa.String, nullable=False),
    sa.Column("ms", sa.BigInteger, nullable=False),
    sa.Column("seen", sa.String, nullable=False),
    sa.Column("round", sa.Integer, nullable=False),
    sa.Column("review", sa.String, nullable=False),
    sa.Column("received", sa.Float, nullable=False),
    sa.UniqueConstraint("reviewer", "key"),
)
_handed = sa.Table(
    "handed_out",
    _tables,
    sa.Column("reviewer", sa.String, primary_key=True),
    sa.Column("image_id", sa.String, primary_key=True),
    sa.Column("number", sa.Integer, nullable=False),
    sa.Column("until", sa.Float, nullable=False),
)


class StorageError(Exception):
    """The database took nothing; `full` where its disk is full."""

    def __init__(self, error: DBAPIError) -> None:
        said = str(error.orig)
        super().__init__(said)
        self.full = any(word in said for word in ("full", "No space left", "disk I/O error", "too large"))


class Database:
    """One review's answers, reviewers and handed out photographs; safe to use from several threads."""

    def __init__(self, url: str, review: str) -> None:
        self._engine = _open(url)
        self._insert = sqlite.insert if self._engine.dialect.name == "sqlite" else postgresql.insert
        try:
            with self._writing() as connection:
                if self._engine.dialect.name == "sqlite":
                    _check_sqlite(connection)
                _tables.create_all(connection)
                connection.execute(self._insert(_about).values(name="review", value=review).on_conflict_do_nothing())
                known = connection.execute(sa.select(_about.c.value).where(_about.c.name == "review")).scalar_one()
                connection.execute(sa.select(_handed)).all()
            self.answers()
            self.people()
        except (StorageError, ValueError, TypeError, AttributeError) as error:  # rows that no page writes among them
            where = self._engine.url.render_as_string(hide_password=True)
            why = " ".join(str(error).split())[:200]
            raise RunFolderError(
                f"{where}: can't be used ({why})", "check the path, or --database; restore a damaged file from a copy"
            ) from error
        if known != review:
            raise SettingsError(
                f"{self._engine.url.render_as_string(hide_password=True)}: holds the answers to other photographs or "
                "labels",
                "give another --database for this run",
            )

    @contextmanager
    def _writing(self) -> Iterator[sa.Connection]:
        """A transaction that is on disk when it ends; StorageError where it isn't."""
        try:
            with self._engine.begin() as connection:
                yield connection
        except DBAPIError as error:
            raise StorageError(error) from error

    def close(self) -> None:
        """Give back the connections."""
        self._engine.dispose()

    # -------------------------------------------------------------------------------------------- people

    def invite(self, names: Sequence[str], renew: bool = False) -> dict[str, str]:
        """New tokens of those who have none, of everybody named where `renew`: name to token."""
        tokens = {}
        with self._writing() as connection:
            known = set(connection.execute(sa.select(_people.c.name)).scalars())
            for name in dict.fromkeys(names):
                if name in known and not renew:
                    continue
                tokens[name] = secrets.token_urlsafe(TOKEN_BYTES)
                row = self._insert(_people).values(name=name, token_sha256=_digest(tokens[name]))
                connection.execute(
                    row.on_conflict_do_update(index_elements=["name"], set_={"token_sha256": _digest(tokens[name])})
                )
        return tokens

    def who(self, token: str) -> str | None:
        """The reviewer that a token belongs to; every known one is compared, each in constant time."""
        digest, found = _digest(token), None
        with self._writing() as connection:
            for name, known in connection.execute(sa.select(_people.c.name, _people.c.token_sha256)).all():
                if hmac.compare_digest(digest.encode(), str(known).encode()):
                    found = name
        return found

    def people(self) -> list[str]:
        """Everybody with a link, the lead too."""
        with self._writing() as connection:
            return sorted(connection.execute(sa.select(_people.c.name)).scalars())

    # -------------------------------------------------------------------------------------------- answers

    def append(self, answers: Sequence[Answer]) -> list[str]:
        """Keep lines of one reviewer and give their keys; a line that is there already is not kept twice."""
        rows = [
            {**line.model_dump(exclude={"at", "seen"}), "at": line.moment, "seen": " ".join(line.seen)}
            for line in answers
        ]
        now = time.time()
        with self._writing() as connection:
            for row in rows:
                connection.execute(self._insert(_answers).values(**row, received=now).on_conflict_do_nothing())
        return [line.key for line in answers]

    def answers(self, number: int | None = None) -> list[Answer]:
        """All lines in the order of their arrival; number: of this round only."""
        chosen = sa.select(_answers).order_by(_answers.c.number)
        if number is not None:
            chosen = chosen.where(_answers.c.round == number)
        with self._writing() as connection:
            return [_line(row._mapping) for row in connection.execute(chosen)]

    # -------------------------------------------------------------------------------------------- handing out

    @contextmanager
    def handing_out(self) -> Iterator[HandOut]:
        """Nobody else is handed anything meanwhile, so that no photograph goes to more people than asked."""
        with self._writing() as connection:
            if self._engine.dialect.name == "postgresql":
                connection.execute(sa.select(sa.func.pg_advisory_xact_lock(LOCK)))
            yield HandOut(connection, self._insert)

    def handed_to(self, reviewer: str) -> list[str]:
        """The photographs that a reviewer was ever handed, in this order."""
        chosen = sa.select(_handed.c.image_id).where(_handed.c.reviewer == reviewer).order_by(_handed.c.number)
        with self._writing() as connection:
            return list(connection.execute(chosen).scalars())


class HandOut:
    """What is handed to whom, within one transaction."""

    def __init__(self, connection: sa.Connection, insert: Any) -> None:
        self._connection, self._insert = connection, insert

    def answers(self, number: int) -> list[Answer]:
        """All lines of a round."""
        chosen = sa.select(_answers).where(_answers.c.round == number).order_by(_answers.c.number)
        return [_line(row._mapping) for row in self._connection.execute(chosen)]

    def held(self) -> dict[str, set[str]]:
        """image_id to those whose lease has not run out."""
        found: dict[str, set[str]] = {}
        rows = self._connection.execute(
            sa.select(_handed.c.image_id, _handed.c.reviewer).where(_handed.c.until > time.time())
        )
        for image_id, reviewer in rows:
            found.setdefault(image_id, set()).add(reviewer)
        return found

    def hand(self, reviewer: str, image_ids: Sequence[str]) -> None:
        """Keep photographs for a reviewer."""
        last = self._connection.execute(sa.select(sa.func.max(_handed.c.number))).scalar() or 0
        until = time.time() + LEASE
        for number, image_id in enumerate(image_ids, last + 1):
            row = self._insert(_handed).values(reviewer=reviewer, image_id=image_id, number=number, until=until)
            self._connection.execute(
                row.on_conflict_do_update(index_elements=["reviewer", "image_id"], set_={"until": until})
            )


def _line(row: Any) -> Answer:
    values = {name: row[name] for name in Answer.model_fields}
    return Answer.model_validate({**values, "seen": tuple(row["seen"].split())})


def _digest(token: str) -> str:
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).hexdigest()


def sqlite_url(path: Path) -> str:
    """The URL of an SQLite file."""
    return sa.URL.create("sqlite", database=str(Path(path).absolute())).render_as_string()


def _open(text: str) -> sa.Engine:
    try:
        url = make_url(text)
        kind = url.get_backend_name()
    except ArgumentError as error:
        raise SettingsError("--database is no URL of a database", "as in postgresql://user@host/name") from error
    if kind == "sqlite":
        if not url.database or url.database == ":memory:":
            raise SettingsError("--database names no file, and answers must be kept", "as in sqlite:////folder/file")
        try:
            Path(url.database).parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise explain_os_error(error, Path(url.database)) from error
        engine = sa.create_engine(url.set(drivername="sqlite"), connect_args={"timeout": PATIENCE})
        sa.event.listen(engine, "connect", _set_up)
        sa.event.listen(engine, "begin", lambda connection: connection.exec_driver_sql("BEGIN IMMEDIATE"))
        return engine
    if kind in ("postgresql", "postgres"):
        if find_spec("psycopg") is None:
            raise MissingExtraError("a database in PostgreSQL", "postgres")
        return sa.create_engine(url.set(drivername="postgresql+psycopg"), pool_pre_ping=True)
    raise SettingsError(f"--database {kind}: this kind is not supported", "sqlite:////folder/file or postgresql://...")


def _check_sqlite(connection: sa.Connection) -> None:
    """ValueError where pages or indexes of the file are damaged."""
    found = connection.exec_driver_sql("PRAGMA integrity_check(1)").scalar()
    if found != "ok":
        raise ValueError(f"damaged: {found}")


def _set_up(connection: Any, _: Any) -> None:
    connection.isolation_level = None  # sqlite3 leaves transactions to us
    for setting in ("journal_mode=WAL", "synchronous=FULL"):
        connection.execute(f"PRAGMA {setting}").close()
