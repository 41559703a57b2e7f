"""Open an event store from a URL or path."""

from __future__ import annotations

from pathlib import Path

from router_ml.errors import StoreError
from router_ml.events.postgres import PostgresStore
from router_ml.events.privacy import Privacy, load_key
from router_ml.events.sqlite import SqliteStore
from router_ml.events.store import DATABASE, EventStore
from router_ml.settings import Settings


def open_store(
    url: str | Path,
    *,
    key_dir: Path | None = None,
    keep_text: bool = False,
    keep_features: bool = False,
    read_only: bool = False,
) -> EventStore:
    """Open a store by URL: `postgresql://...`, `sqlite:///file`, or the path of a SQLite file or its folder.

    `key_dir` holds the key of keyed hashes; by default the folder of a SQLite file, or `~/.router_ml`.
    Raises `StoreError` if it cannot be opened."""
    text = str(url)
    if text.startswith(("postgresql://", "postgres://")):
        folder = key_dir or Path("~/.router_ml").expanduser()
        return PostgresStore(text, Privacy(load_key(folder), keep_text, keep_features))
    if "://" in text and not text.startswith("sqlite:///"):
        raise StoreError(f"the event store's URL {_scheme(text)}://... is unknown; use sqlite:/// or postgresql://")
    path = Path(text.removeprefix("sqlite:///")).expanduser()
    if path.is_dir() or not path.suffix:
        path = path / DATABASE
    if read_only and not path.exists():
        raise StoreError(
            f"there is no event store at {path}: nothing has been recorded yet; a gateway, a coordinator node or "
            "router-ml serve makes it, in ROUTER_ML_STATE_DIR"
        )
    key = b"" if read_only else load_key(key_dir or path.parent)
    return SqliteStore(path, Privacy(key, keep_text, keep_features), read_only=read_only)


def settings_store(settings: Settings, *, read_only: bool = True) -> EventStore:
    """Return the event store of the settings, which keeps of queries what they say. Raises `StoreError`."""
    return open_store(
        settings.events or settings.state_dir,
        key_dir=settings.state_dir,
        keep_text=settings.keep_text,
        keep_features=settings.keep == "features",
        read_only=read_only,
    )


def _scheme(url: str) -> str:
    return url.split("://", 1)[0]
