"""The models on the hosts as tables of a catalogue: what a catalogue file would say, were there one."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from router_ml.catalogue import CAPABILITIES, Catalogue, Model, catalogue_from
from router_ml.errors import CatalogueError
from router_ml.hosts.listing import HostListing, Listed, list_hosts
from router_ml.hosts.names import normal
from router_ml.library import known
from router_ml.types import Role

log = logging.getLogger(__name__)

DEFAULT_WINDOW_TOKENS = 4_096  # of an Ollama server on a machine with less than 23 GiB of video memory
FOUND = "the models on the hosts"  # source of a catalogue that was listed
START_TIMEOUT_S = 2.0  # of the listing when a server starts
_SUCCESS_PER_S = 0.02  # what the policy "balanced" gives for a second
Table = dict[str, Any]


def catalogue_of_hosts(urls: Sequence[str], timeout_s: float = START_TIMEOUT_S) -> Catalogue | None:
    """Return a catalogue of what the hosts have, without measuring anything; None where no host has a model."""
    listings = list_hosts(urls, timeout_s)
    for listing in listings:
        if listing.problem:
            log.debug("%s", listing.problem)
    try:
        tables = tables_of(listings, urls[0] if len(urls) == 1 else None)
        return catalogue_from(tables, FOUND) if tables else None
    except CatalogueError as error:  # a host may say anything
        log.warning("the models on the hosts cannot be listed: %s", error)
        return None


def tables_of(listings: Iterable[HostListing], default_host: str | None = None) -> list[Table]:
    """Return one table for each model that chats, as a catalogue file has it.

    A model names its hosts unless all are on the `default_host`. What has one name or one digest is one model."""
    hosts = [listing for listing in listings if not listing.problem]
    groups: list[list[Listed]] = []
    places: dict[str, list[Listed]] = {}
    for listed in (model for listing in hosts for model in listing.models if model.chats):
        signs = [normal(listed.name), *([listed.digest] if listed.digest else [])]
        group = next((places[sign] for sign in signs if sign in places), None)
        if group is None:
            groups.append(group := [])
        group.append(listed)
        places.update(dict.fromkeys(signs, group))
    elsewhere = any(listing.url != default_host for listing in hosts)
    tables = [_table(group, elsewhere) for group in groups]
    return with_roles(tables) if tables else []


def _table(group: Sequence[Listed], names_hosts: bool) -> Table:
    names = list(dict.fromkeys(listed.name for listed in group))
    name = min(names, key=lambda n: (n.endswith(":latest"), len(n)))
    listed = next(one for one in group if one.name == name)
    entry = known(name)
    given = max((one.given_context_tokens or 0 for one in group), default=0) or None
    own = listed.own_context_tokens or (entry.context_tokens if entry else None)
    capabilities = _capabilities(listed)
    table: Table = {
        "name": name,
        "family": entry.family if entry else listed.family,
        "parameters_b": _rounded(listed.parameters_b or (entry.parameters_b if entry else None)),
        "quantisation": listed.quantisation,
        "size_gb": listed.size_gb,
        "context_window_tokens": _window(given, own),
        "max_context_tokens": own,
        **({} if capabilities is None else {"capabilities": capabilities}),
        "aliases": [other for other in names if other != name],
        "hosts": list(dict.fromkeys(one.host for one in group)) if names_hosts else [],
        "arm": [{"think": think} for think in thinking_arms(listed)],
    }
    return {key: value for key, value in table.items() if key == "capabilities" or value not in (None, "", [])}


def _window(given: int | None, own: int | None) -> int | None:
    """Return what a host gives: as it says, else Ollama's default, which no model's own window exceeds by itself."""
    return given or (min(own, DEFAULT_WINDOW_TOKENS) if own else DEFAULT_WINDOW_TOKENS)


def _capabilities(listed: Listed) -> list[str] | None:
    stated = listed.capabilities
    if stated is None:
        entry = known(listed.name)
        return sorted(entry.capabilities) if entry else None
    return sorted(stated & set(CAPABILITIES))


def thinking_arms(listed: Listed) -> tuple[bool | str, ...]:
    """Return the ways a model is worth asking in; none where it has no choice."""
    capabilities = listed.capabilities
    entry = known(listed.name)
    if capabilities is not None and "thinking" not in capabilities:
        return ()
    if "gptoss" in normal(listed.family).replace("-", "") or (entry is not None and entry.thinking == "effort"):
        return ("low", "medium", "high")
    if entry is not None:
        return (False, True) if entry.thinking == "switch" else ()
    return (False, True) if capabilities is not None else ()


def with_roles(tables: Sequence[Table]) -> list[Table]:
    """Return the tables with roles: accurate is the likeliest to be right, fast the quickest of the others, balanced
    what the policy of that name likes best of the rest. A role that a table has stays."""
    models = {model.name: model for model in catalogue_from(tables, FOUND).models}
    taken = {table["role"] for table in tables if "role" in table}
    free = [models[table["name"]] for table in tables if "role" not in table]
    roles: dict[str, Role] = {}
    for role, worth in (("accurate", _success), ("fast", _speed), ("balanced", _utility)):
        candidates = [model for model in free if model.name not in roles]
        if candidates and role not in taken:
            roles[max(candidates, key=worth).name] = role  # type: ignore[assignment]
    return [_with_role(table, roles) for table in tables]


def _with_role(table: Table, roles: Mapping[str, Role]) -> Table:
    if table["name"] not in roles:
        return dict(table)
    return {"name": table["name"], "role": roles[table["name"]], **{k: v for k, v in table.items() if k != "name"}}


def _success(model: Model) -> float:
    return max(sum(arm.prior.success.values()) for arm in model.each_arm)


def _speed(model: Model) -> float:
    return -min(sum(arm.prior.latency_s.values()) for arm in model.each_arm)


def _utility(model: Model) -> float:
    return max(
        sum(arm.prior.success.values()) - _SUCCESS_PER_S * sum(arm.prior.latency_s.values()) for arm in model.each_arm
    )


def _rounded(billions: float | None) -> float | None:
    if not billions:
        return None
    digits = max(2 - math.floor(math.log10(billions)), 0)
    return round(billions, digits)
