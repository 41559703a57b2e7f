"""router-ml keys: who may call the server over the network."""

from __future__ import annotations

import argparse
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from router_ml.settings import load_settings

if TYPE_CHECKING:
    from router_ml.http.keys import KeyFile


def register(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the verb."""
    verb = subparsers.add_parser(
        "keys",
        help="API keys of the server: add, list, revoke",
        description="Keys for `router-ml serve`. Only their hashes are stored: a new key is shown once.",
    )
    verb.add_argument("--file", type=Path, help="the key file (keys.json in the state folder)")
    actions = verb.add_subparsers(dest="action", metavar="ACTION", required=True)
    add = actions.add_parser("add", help="make a key and print it")
    add.add_argument("user", help="whose key it is: the user id of its requests")
    add.add_argument("--policy", help="every request of this key is served under this policy")
    add.add_argument("--per-minute", type=int, metavar="N", help="requests a minute (no limit)")
    add.set_defaults(func=_add)
    actions.add_parser("list", help="show whose keys there are").set_defaults(func=_list)
    revoke = actions.add_parser("revoke", help="delete a key")
    revoke.add_argument("user", help="whose key")
    revoke.set_defaults(func=_revoke)


def _add(options: argparse.Namespace) -> int:
    print(_file(options).add(options.user, options.policy, options.per_minute))
    return 0


def _list(options: argparse.Namespace) -> int:
    for key in _file(options).all():
        made = datetime.fromtimestamp(key.created_s, UTC).date().isoformat()
        rate = f"{key.per_minute} a minute" if key.per_minute else "any rate"
        print(f"{key.user:<24}{key.policy or 'any policy':<16}{rate:<16}since {made}")
    return 0


def _revoke(options: argparse.Namespace) -> int:
    _file(options).revoke(options.user)
    print(f"revoked the key of {options.user}")
    return 0


def _file(options: argparse.Namespace) -> KeyFile:
    from router_ml.http.keys import KeyFile

    return KeyFile(options.file or load_settings().state_dir / "keys.json")
