"""Keeps the files that must be the same on every replica in PostgreSQL: what one of them writes, all of them get.

Experiments with their halts, API keys, the catalogue and the policies of the state folder, the active bundle and its
files. Every part of the router reads and writes these files as it does without a database; a thread carries changes in
both directions (`LISTEN`, and a query a second where notifications do not come through). While the database is away the
files stay as they are, and a halt holds where it was given."""

from __future__ import annotations

import hashlib
import io
import json
import logging
import re
import shutil
import tarfile
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from router_ml.bundles.format import MANIFEST, load_bundle, read_manifest
from router_ml.bundles.registry import ACTIVE_FILE, DEFAULT, ActiveBundle, read_active, registry_folder, replace_bundle
from router_ml.errors import RouterError, StoreError
from router_ml.events.postgres import connected, reason
from router_ml.experiments.rollout import FOLDER
from router_ml.experiments.state import ACTIVE, FINISHED, HALT, RECORDS
from router_ml.files import atomic_write, file_lock, make_private_folder, read_regular
from router_ml.settings import Settings

if TYPE_CHECKING:
    import psycopg

log = logging.getLogger(__name__)

MAX_BYTES = 256 * 2**20  # of one document; a larger bundle needs a folder that all replicas see
_BASE_FILE, _LOCK_FILE = "shared.json", "shared.lock"
_CHANNEL = "router_ml_documents"
_LOCK = 7_263_910_456
_WATCH_S, _POLL_S, _AGAIN_S = 0.25, 1.0, 0.5
_ACTIVE_BUNDLE, _BUNDLES = "models/active.json", "bundle/"
_HALT_NAME = f"{FOLDER}/{HALT}"
_WORD = r"[\w+@,=-][\w.+@,=-]*"
_NAMES = re.compile(
    rf"keys\.json|{_WORD}\.toml|{FOLDER}/(?:{ACTIVE}|{HALT})|{FOLDER}/(?:{FINISHED}|{RECORDS})/{_WORD}\.json"
    rf"|{_ACTIVE_BUNDLE}|{_BUNDLES}{_WORD}"
)
_TABLE = (
    "CREATE TABLE IF NOT EXISTS shared_document (name TEXT PRIMARY KEY, version BIGINT NOT NULL, "
    "sha256 TEXT NOT NULL, content BYTEA)",  # content is NULL where the file was deleted
    "CREATE INDEX IF NOT EXISTS shared_document_version_at ON shared_document (version)",
    "CREATE SEQUENCE IF NOT EXISTS shared_document_version",
)
_DELETED = ""  # the sha256 of a file that is not there


class Mirror:
    """The shared files of one state folder. Of several processes with that folder one at a time carries changes.

    `problem` says why the database cannot be reached, `refused` why a document was not taken; "" where all is well."""

    def __init__(self, url: str, settings: Settings) -> None:
        self._url, self._state_dir = url, settings.state_dir
        self._registry = None if settings.bundle is not None else registry_folder(settings)
        self.problem, self.refused = "not connected yet", ""
        self._listeners: list[Callable[[], object]] = []
        self._hashes: dict[Path, tuple[object, str]] = {}
        self._stopped = threading.Event()
        self._thread: threading.Thread | None = None

    def listen(self, changed: Callable[[], object]) -> None:
        """Call a function, from the thread, whenever files were taken."""
        self._listeners.append(changed)

    def start(self) -> None:
        """Carry changes from now on."""
        self._thread = threading.Thread(target=self._run, name="router-ml-mirror", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop."""
        self._stopped.set()
        if self._thread is not None:
            self._thread.join(2.0)

    def sync(self) -> bool:
        """Carry changes once, waiting for another process that does; return whether the database answered."""
        try:
            with _connection(self._url) as connection:
                self._exchange(connection, wait=True)
        except (StoreError, OSError) as error:
            self.problem = str(error)
            return False
        self.problem = ""
        return True

    def _run(self) -> None:
        while not self._stopped.is_set():
            try:
                with _connection(self._url) as connection:
                    self._follow(connection)
            except Exception as error:  # whatever it is, the next round may succeed
                if not self.problem:
                    log.warning("files are not shared: %s", error)
                self.problem = str(error)
                self._stopped.wait(_AGAIN_S)

    def _follow(self, connection: psycopg.Connection[Any]) -> None:
        connection.execute(f"LISTEN {_CHANNEL}")
        asked_s, notified = float("-inf"), False
        while not self._stopped.is_set():
            if notified or time.monotonic() - asked_s > _POLL_S or self._changed():
                asked_s = time.monotonic()
                self._exchange(connection, wait=False)
                self.problem = ""
            notified = any(connection.notifies(timeout=_WATCH_S, stop_after=1))

    def _exchange(self, connection: psycopg.Connection[Any], wait: bool) -> None:
        try:
            with file_lock(self._state_dir / _LOCK_FILE, wait=wait):
                base = _Base(self._state_dir / _BASE_FILE)
                taken = self._pull(connection, base)
                self._push(connection, base)
                base.write()
        except BlockingIOError:
            return  # another process with this folder is at it
        if taken:
            for listener in self._listeners:
                listener()

    # -- from the database ------------------------------------------------------------------------------------------

    def _pull(self, connection: psycopg.Connection[Any], base: _Base) -> bool:
        query = "SELECT name, version, sha256 FROM shared_document WHERE version > %s ORDER BY version"
        rows = connection.execute(query, (base.version,)).fetchall()
        rows.sort(key=lambda row: _safe_first(row[0], row[2] == _DELETED))
        self.refused = "" if rows else self.refused
        taken = False
        for name, _, sha256 in rows:
            taken |= self._take(connection, base, str(name), str(sha256))
        base.version = max([base.version, *(row[1] for row in rows)])
        return taken

    def _take(self, connection: psycopg.Connection[Any], base: _Base, name: str, sha256: str) -> bool:
        """Take a document; return whether a file changed. What does not verify is refused, and the old one stays."""
        if not _NAMES.fullmatch(name) or (self._registry is None and name.startswith((_BUNDLES, _ACTIVE_BUNDLE))):
            return False
        local = self._sha256(name)
        if local == sha256:
            base.documents[name] = sha256
            return False
        if name == _HALT_NAME and sha256 == _DELETED and name not in base.documents:
            return False  # halted here, and nobody else has heard of it yet
        if name.startswith(_BUNDLES) and sha256 == _DELETED:
            return False
        row = connection.execute("SELECT content FROM shared_document WHERE name = %s", (name,)).fetchone()
        content = None if row is None or row[0] is None else bytes(row[0])
        try:
            if hashlib.sha256(content).hexdigest() != sha256 if content is not None else sha256 != _DELETED:
                raise StoreError("its content is not what its checksum says")
            if local != _DELETED and name not in base.documents and not name.startswith(_BUNDLES):
                self._set_aside(name)
            self._write(name, content)
        except (RouterError, OSError, ValueError, tarfile.TarError) as error:
            self.refused = f"{name}: {error}"
            log.warning("%s from the database is refused, the last good one stays: %s", name, error)
            return False
        base.documents[name] = sha256
        return True

    def _write(self, name: str, content: bytes | None) -> None:
        path = self._path(name)
        if name.startswith(_BUNDLES):
            self._install(path, content or b"")
        elif content is None:
            path.unlink(missing_ok=True)
        else:
            if name == _ACTIVE_BUNDLE:
                self._check_active(content)
            atomic_write(path, content)

    def _check_active(self, content: bytes) -> None:
        """Raise `BundleError` unless the bundle that is to be active is here and sound."""
        assert self._registry is not None
        active = str(json.loads(content)["active"])
        if active != DEFAULT or (self._registry / active).exists():
            load_bundle(self._registry / active)

    def _install(self, target: Path, archive: bytes) -> None:
        make_private_folder(target.parent)
        with tempfile.TemporaryDirectory(prefix=".partial-", dir=target.parent) as scratch:
            folder = Path(scratch) / "bundle"
            folder.mkdir()
            with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
                tar.extractall(folder, filter="data")
            load_bundle(folder)
            replace_bundle(folder, target)

    def _set_aside(self, name: str) -> None:
        """Keep a file that was here before this folder was first shared."""
        path = self._path(name)
        shutil.copy2(path, path.with_name(f"{path.name}.before-sharing"))

    # -- to the database --------------------------------------------------------------------------------------------

    def _push(self, connection: psycopg.Connection[Any], base: _Base) -> None:
        changes = [(name, sha256) for name, sha256 in self._found(base) if base.documents.get(name, _DELETED) != sha256]
        if not changes:
            return
        changes.sort(key=lambda change: _safe_first(change[0], change[1] == _DELETED))
        with connection.transaction():
            connection.execute("SELECT pg_advisory_xact_lock(%s)", (_LOCK,))
            for name, sha256 in changes:
                self._put(connection, base, name, sha256)
            connection.execute(f"NOTIFY {_CHANNEL}")

    def _put(self, connection: psycopg.Connection[Any], base: _Base, name: str, sha256: str) -> None:
        content = None if sha256 == _DELETED else self._content(name)
        if content is not None and hashlib.sha256(content).hexdigest() != sha256:
            return  # it is changing at this moment: the next round
        row = connection.execute("SELECT sha256 FROM shared_document WHERE name = %s", (name,)).fetchone()
        known = _DELETED if row is None else str(row[0])
        is_halt = name == _HALT_NAME and content is not None
        if known != base.documents.get(name, _DELETED) and not is_halt:
            log.warning("%s was changed here and elsewhere; the change that came first stays", name)
            base.documents[name] = sha256  # the next pull replaces it
            return
        connection.execute(
            "INSERT INTO shared_document VALUES (%s, nextval('shared_document_version'), %s, %s) "
            "ON CONFLICT (name) DO UPDATE SET version = excluded.version, sha256 = excluded.sha256, "
            "content = excluded.content",
            (name, sha256, content),
        )
        base.documents[name] = sha256

    # -- the files --------------------------------------------------------------------------------------------------

    def _changed(self) -> bool:
        """Return whether a file differs from what was last carried, at the cost of a few `stat` calls."""
        base = _Base(self._state_dir / _BASE_FILE)
        return any(base.documents.get(name, _DELETED) != sha256 for name, sha256 in self._found(base))

    def _found(self, base: _Base) -> Iterator[tuple[str, str]]:
        """Yield each shared file that is here, or was, with its checksum."""
        names = set(self._names())
        gone = {name for name in base.documents if name not in names and not name.startswith(_BUNDLES)}
        for name in sorted(names | gone):
            with suppress(OSError, RouterError):
                yield name, self._sha256(name)

    def _names(self) -> Iterable[str]:
        experiments = self._state_dir / FOLDER
        paths = [
            self._state_dir / "keys.json",
            *self._state_dir.glob("*.toml"),
            *(experiments / name for name in (ACTIVE, HALT)),
            *experiments.glob(f"{FINISHED}/*.json"),
            *experiments.glob(f"{RECORDS}/*.json"),
        ]
        names = [str(path.relative_to(self._state_dir).as_posix()) for path in paths if path.is_file()]
        return [name for name in (*names, *self._bundle_names()) if _NAMES.fullmatch(name)]

    def _bundle_names(self) -> list[str]:
        """Return the active bundle's file and the bundles that it names."""
        active: ActiveBundle | None = None
        with suppress(RouterError):
            active = None if self._registry is None else read_active(self._registry)
        if active is None or self._registry is None:
            return []
        named = [name for name in (active.active, active.previous, active.shadow) if name is not None]
        return [_BUNDLES + name for name in named if (self._registry / name / MANIFEST).is_file()] + [_ACTIVE_BUNDLE]

    def _path(self, name: str) -> Path:
        if name.startswith((_BUNDLES, _ACTIVE_BUNDLE)):
            assert self._registry is not None
            return self._registry / (ACTIVE_FILE if name == _ACTIVE_BUNDLE else name.removeprefix(_BUNDLES))
        return self._state_dir / name

    def _sha256(self, name: str) -> str:
        """Return the checksum of a file, or of a bundle's archive; read anew where its time or size has changed."""
        path = self._path(name)
        watched = path / MANIFEST if name.startswith(_BUNDLES) else path
        try:
            found = watched.stat()
        except OSError:
            return _DELETED
        stamp = (found.st_mtime_ns, found.st_size, found.st_ino)
        known = self._hashes.get(path)
        if known is None or known[0] != stamp:
            known = self._hashes[path] = (stamp, hashlib.sha256(self._content(name)).hexdigest())
        return known[1]

    def _content(self, name: str) -> bytes:
        path = self._path(name)
        return _archive(path) if name.startswith(_BUNDLES) else read_regular(path, MAX_BYTES)


class _Base:
    """What was last carried: a checksum for each file, and how far the database was read."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.version, self.documents = 0, dict[str, str]()
        with suppress(OSError, ValueError, KeyError, TypeError, AttributeError):
            row = json.loads(path.read_bytes())
            self.version, self.documents = int(row["version"]), dict(row["documents"])
        self._before = (self.version, dict(self.documents))

    def write(self) -> None:
        """Store it, where it has changed."""
        if (self.version, self.documents) != self._before:
            atomic_write(self._path, json.dumps({"version": self.version, "documents": self.documents}, indent=1))


def open_mirror(settings: Settings) -> Mirror | None:
    """Return the mirror of the state folder where the event store is in PostgreSQL, else None. Nothing runs yet."""
    url = settings.events or ""
    return Mirror(url, settings) if url.startswith(("postgresql://", "postgres://")) else None


def _safe_first(name: str, deleted: bool) -> int:
    """Return when a change is applied: bundles before what names them, a halt before all else, its end after all."""
    if name.startswith(_BUNDLES):
        return 0
    return 1 if name != _HALT_NAME else 2 if deleted else -1


def _archive(folder: Path) -> bytes:
    """Return a bundle's own files as a tar archive that depends on their names and content alone."""
    buffer = io.BytesIO()
    names = sorted({*read_manifest(folder)["files"], MANIFEST})
    if (size := sum((folder / name).stat().st_size for name in names)) > MAX_BYTES:
        raise StoreError(
            f"the bundle {folder.name} has {size:,} bytes and the database takes {MAX_BYTES:,}; "
            "set ROUTER_ML_MODELS_DIR to a folder that all replicas see"
        )
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for name in names:
            content = (folder / name).read_bytes()
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode = len(content), 0o600
            tar.addfile(entry, io.BytesIO(content))
    return buffer.getvalue()


@contextmanager
def _connection(url: str) -> Iterator[psycopg.Connection[Any]]:
    """Open the database with its table of documents. Raises `StoreError`, without the URL, which holds a password."""
    import psycopg

    try:
        with connected(url) as connection:
            with connection.transaction():
                connection.execute("SELECT pg_advisory_xact_lock(%s)", (_LOCK,))
                for statement in _TABLE:
                    connection.execute(statement)
            yield connection
    except (psycopg.Error, ValueError) as error:
        why = reason(error, getattr(error, "sqlstate", None))
        raise StoreError(f"PostgreSQL cannot be used for shared files: {why}") from None
