"""The file under the ledger: schema, single-writer lock, connections, and what SQLite's errors mean.

WAL mode with synchronous=FULL: a committed transaction has reached the disk, so a killed process or
a power cut loses nothing that was reported as recorded, and readers never wait for the writer.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
import socket
import sqlite3
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from dal_dense.errors import LedgerError

FILE = "ledger.sqlite"
LOCK = "ledger.lock"
SCHEMA_VERSION = 1
APPLICATION_ID = 0x44414C44  # "DALD", so that `file` and we can tell it from other databases

SCHEMA = """
CREATE TABLE run (
    id INTEGER PRIMARY KEY CHECK (id = 1), run_id TEXT NOT NULL, seed INTEGER NOT NULL,
    config TEXT NOT NULL, created REAL NOT NULL
) STRICT;
CREATE TABLE queries (
    round INTEGER PRIMARY KEY, strategy TEXT NOT NULL, seed INTEGER NOT NULL, extra TEXT NOT NULL,
    seconds_to_choose REAL, time REAL NOT NULL
) STRICT;
CREATE TABLE regions (
    id TEXT PRIMARY KEY, round INTEGER NOT NULL REFERENCES queries, position INTEGER NOT NULL,
    image_id TEXT NOT NULL, kind TEXT NOT NULL, start TEXT NOT NULL, stop TEXT NOT NULL, score REAL,
    seconds REAL NOT NULL, boundary REAL NOT NULL, objects REAL NOT NULL, extra TEXT NOT NULL,
    UNIQUE (round, position)
) STRICT;
CREATE INDEX regions_of_image ON regions (image_id);
CREATE TABLE answers (
    region_id TEXT PRIMARY KEY REFERENCES regions, arrived INTEGER NOT NULL, source TEXT NOT NULL,
    seconds REAL NOT NULL, image_seconds REAL NOT NULL, boundary REAL, objects REAL, area REAL,
    shape TEXT NOT NULL, dtype TEXT NOT NULL, label BLOB NOT NULL, note TEXT NOT NULL, time REAL NOT NULL
) STRICT;
CREATE TABLE conflicts (
    region_id TEXT NOT NULL REFERENCES answers, sha256 TEXT NOT NULL, source TEXT NOT NULL,
    seconds REAL NOT NULL, shape TEXT NOT NULL, dtype TEXT NOT NULL, label BLOB NOT NULL,
    note TEXT NOT NULL, time REAL NOT NULL,
    PRIMARY KEY (region_id, sha256)
) STRICT;
CREATE TABLE rejections (
    region_id TEXT PRIMARY KEY REFERENCES regions, arrived INTEGER NOT NULL, reason TEXT NOT NULL,
    seconds REAL NOT NULL, time REAL NOT NULL
) STRICT;
CREATE TABLE closes (
    round INTEGER PRIMARY KEY REFERENCES queries, left_open INTEGER NOT NULL, time REAL NOT NULL
) STRICT;
CREATE TABLE fits (
    round INTEGER PRIMARY KEY REFERENCES closes, folder TEXT NOT NULL, sha256 TEXT NOT NULL,
    figures TEXT NOT NULL, time REAL NOT NULL
) STRICT;
CREATE TABLE measurements (
    round INTEGER PRIMARY KEY REFERENCES fits, metric TEXT NOT NULL, value REAL, per_class TEXT NOT NULL,
    per_group TEXT NOT NULL, extra TEXT NOT NULL, time REAL NOT NULL
) STRICT;
CREATE TABLE initial (
    image_id TEXT PRIMARY KEY, path TEXT NOT NULL, sha256 TEXT NOT NULL, time REAL NOT NULL
) STRICT;
CREATE TABLE events (
    id INTEGER PRIMARY KEY, kind TEXT NOT NULL, payload TEXT NOT NULL, time REAL NOT NULL
) STRICT;
CREATE INDEX events_of_kind ON events (kind);
"""

_MEANING = {
    "SQLITE_FULL": "the disk is full ({free} free); nothing recorded so far is lost: "
    "free space and run the command again",
    "SQLITE_IOERR": "the disk refused a read or write ({free} free); nothing recorded so far is lost: "
    "check disk space, quota and mount, then run the command again",
    "SQLITE_CORRUPT": "the file is damaged; restore it from a backup, or save what is left with "
    "`sqlite3 FILE .recover` into a new file",
    "SQLITE_NOTADB": "the file is damaged or no SQLite database; restore it from a backup or use a new run_dir",
    "SQLITE_READONLY": "the file may not be written; check its owner and permissions",
    "SQLITE_BUSY": "another program holds the file (a database browser?); close it and run the command again",
    "SQLITE_CANTOPEN": "the file cannot be opened; check that the folder is there, with permission to read and write",
}


@contextmanager
def explained(path: Path) -> Iterator[None]:
    """Turn SQLite's errors about the file into a `LedgerError` that names it and says what to do."""
    try:
        yield
    except sqlite3.DatabaseError as error:
        name = getattr(error, "sqlite_errorname", None) or ""
        for code, meaning in _MEANING.items():
            if name.startswith(code):
                raise LedgerError(f"{path}: {meaning.format(free=_free(path.parent))} (SQLite: {error})") from error
        raise


def _free(folder: Path) -> str:
    return f"{shutil.disk_usage(folder).free / 1e6:.0f} MB" if folder.is_dir() else "nothing"


@contextmanager
def single_writer(run_dir: Path, clock: Callable[[], float]) -> Iterator[None]:
    """Hold the run against other processes until the block ends.

    An flock, so the operating system lets go of it even after kill -9. Worker processes that are
    forked meanwhile drop their copy at once: an orphaned data loader must not block the next start.

    Raises:
        LedgerError: if another process holds it (with its pid, host and start), or locks do not work there.
    """
    path = run_dir / LOCK
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        file = path.open("a+", encoding="utf-8")
    except OSError as error:
        raise LedgerError(f"{path}: cannot be made ({error.strerror}); choose a run_dir that can be written") from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
                raise LedgerError(
                    f"{path}: this file system has no file locks ({error.strerror}); put run_dir on a local disk"
                ) from error
            raise LedgerError(_who_holds(file, run_dir)) from None
        _close_in_children(file)
        _sign(file, clock)
        yield


def _sign(file: IO[str], clock: Callable[[], float]) -> None:
    try:
        holder = {"pid": os.getpid(), "host": socket.gethostname(), "started": clock()}
        os.ftruncate(file.fileno(), 0)
        os.write(file.fileno(), json.dumps(holder).encode())
    except OSError as error:
        raise LedgerError(f"{file.name}: cannot be written ({error.strerror}); free space and try again") from error


def _who_holds(file: IO[str], run_dir: Path) -> str:
    file.seek(0)
    try:
        holder = json.load(file)
        who = f"another process (pid {holder['pid']} on {holder['host']})"
    except (ValueError, KeyError, TypeError):  # it has the lock but has not signed yet
        who = "another process"
    return f"{run_dir}: {who} is running this run; wait for it, stop it, or use another run_dir"


def _close_in_children(file: IO[str]) -> None:
    held = weakref.ref(file)

    def drop() -> None:
        if (mine := held()) is not None:
            mine.close()

    os.register_at_fork(after_in_child=drop)


def connect(path: Path, *, write: bool) -> sqlite3.Connection:
    """An open connection to a ledger of this schema; a new file gets its tables when `write`.

    Raises:
        LedgerError: if the file is missing (reading), damaged, no ledger, or of a newer version.
    """
    if not write and not path.is_file():
        raise LedgerError(f"{path}: there is no ledger; start the run first, or correct run_dir")
    with explained(path):
        db = sqlite3.connect(_address(path, write), uri=True, isolation_level=None, timeout=30.0)
        try:
            db.row_factory = sqlite3.Row
            db.execute("PRAGMA foreign_keys = ON")
            _check_kind(db, path)
            if write:
                _prepare(db, path)
        except BaseException:
            db.close()
            raise
    return db


def _address(path: Path, write: bool) -> str:
    if write:
        return path.resolve().as_uri() + "?mode=rwc"
    # Reading a WAL database makes a helper file beside it; an archived run in a folder we may not write has none.
    frozen = not os.access(path.parent, os.W_OK) and not Path(f"{path}-wal").exists()
    return path.resolve().as_uri() + ("?mode=ro&immutable=1" if frozen else "?mode=ro")


def _check_kind(db: sqlite3.Connection, path: Path) -> None:
    version: int = db.execute("PRAGMA user_version").fetchone()[0]
    kind: int = db.execute("PRAGMA application_id").fetchone()[0]
    tables: int = db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
    if tables and kind != APPLICATION_ID:
        raise LedgerError(f"{path}: a SQLite database, but no ledger of dal_dense; use a new run_dir")
    if version > SCHEMA_VERSION:
        raise LedgerError(
            f"{path}: written by a newer dal_dense (ledger version {version}, this one knows {SCHEMA_VERSION}); "
            "update dal_dense, or use a new run_dir"
        )


def _prepare(db: sqlite3.Connection, path: Path) -> None:
    mode: str = db.execute("PRAGMA journal_mode = WAL").fetchone()[0]
    if mode != "wal":
        raise LedgerError(f"{path}: this file system allows only SQLite's mode {mode!r}; put run_dir on a local disk")
    db.execute("PRAGMA synchronous = FULL")
    if db.execute("PRAGMA user_version").fetchone()[0] == 0:
        with transaction(db, path):
            for statement in SCHEMA.split(";"):
                db.execute(statement)
            db.execute(f"PRAGMA application_id = {APPLICATION_ID}")
            db.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")


@contextmanager
def transaction(db: sqlite3.Connection, path: Path) -> Iterator[None]:
    """All of the block or nothing, on the disk when it ends; any error or interrupt undoes it."""
    with explained(path):
        try:
            db.execute("BEGIN IMMEDIATE")
            yield
            db.execute("COMMIT")
        finally:
            if db.in_transaction:
                db.execute("ROLLBACK")


class Store:
    """One open ledger file: SELECTs, transactions with their time, and errors that name the file."""

    def __init__(self, path: Path, db: sqlite3.Connection, clock: Callable[[], float] | None) -> None:
        self.path = path
        self.db = db
        self._clock = clock

    def select(self, sql: str, *values: object) -> list[sqlite3.Row]:
        """All rows of one SELECT."""
        with explained(self.path):
            return self.db.execute(sql, values).fetchall()

    @contextmanager
    def recording(self) -> Iterator[float]:
        """One transaction; yields the time of the record. Refused without a clock, that is, to readers."""
        if self._clock is None:
            raise LedgerError(f"{self.path} was opened to be read only; nothing can be recorded")
        with transaction(self.db, self.path):
            yield float(self._clock())

    def insert(self, table: str, *rows: tuple[object, ...]) -> None:
        """Full rows into a table, inside `recording`."""
        if rows:
            self.db.executemany(f"INSERT INTO {table} VALUES ({','.join('?' * len(rows[0]))})", rows)

    def expect(self, ok: bool, otherwise: str) -> None:
        """Refuse what does not fit the records so far."""
        if not ok:
            raise LedgerError(f"{self.path}: {otherwise}")
