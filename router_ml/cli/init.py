"""router-ml init: find the models on the hosts, measure them briefly, write a catalogue, show what will be chosen."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from router_ml.catalogue import load_catalogue
from router_ml.cli.catalogue_file import merged_text, new_text, read_text
from router_ml.cli.never_chosen import remarks
from router_ml.decide.router import Router
from router_ml.errors import NoModelAvailable
from router_ml.files import atomic_file
from router_ml.hosts.inventory import Table, tables_of
from router_ml.hosts.listing import HostListing, list_hosts
from router_ml.hosts.measure import Measurement, measure
from router_ml.settings import OWN_CATALOGUE, Settings, base_url, load_settings, without_credentials
from router_ml.terminal import SAMPLE_QUERIES, decision_table, print_table, track

DESCRIPTION = """Asks the model hosts what is installed and writes a catalogue that you can read and edit: size,
quantisation, context length, capabilities, roles, and a table for each way a thinking model can be asked. Measures each
model for at most a minute, so that expected seconds are those of this machine. Then shows what the policy "balanced"
would do with a few queries, and which models are never chosen and why."""

EPILOG = """examples:
  router-ml init                              the models of OLLAMA_HOST, into the state folder; serve finds it there
  router-ml init --no-measure                 list only: a second, no tokens
  router-ml init --hosts gpu1:11434 gpu2:11434
  router-ml init --out models.toml            elsewhere; use it with ROUTER_ML_CATALOGUE=models.toml

A second run keeps your edits, adds new models, marks those that are gone and measures anew. --force starts over."""


def register(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the verb."""
    verb = subparsers.add_parser(
        "init",
        help="find your models, measure them and write a catalogue",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    verb.add_argument("--hosts", nargs="+", default=[], metavar="URL", help="model hosts (OLLAMA_HOST)")
    verb.add_argument("--out", type=Path, metavar="FILE", help="the file to write (catalogue.toml in the state folder)")
    verb.add_argument("--no-measure", action="store_true", help="do not run any model")
    verb.add_argument("--measure-s", type=float, default=60.0, metavar="S", help="longest time for one model (60)")
    verb.add_argument("--force", action="store_true", help="write the file anew; the old one is kept as FILE.bak")
    verb.set_defaults(func=_init)


def _init(options: argparse.Namespace) -> int:
    settings = load_settings()
    hosts = tuple(base_url(url, "--hosts") for url in options.hosts) or (settings.ollama_host,)
    path = options.out or settings.catalogue or settings.state_dir / OWN_CATALOGUE
    old = read_text(path) if path.exists() and not options.force else None
    listings = list_hosts(hosts)
    tables = _found(listings, settings.ollama_host)
    measured = {} if options.no_measure else _measure(listings, tables, options.measure_s)
    tables = [_as_loaded(table, measured.get(table["name"])) for table in tables]
    complete = not any(listing.problem for listing in listings)
    text = new_text(tables, hosts, measured) if old is None else merged_text(old, tables, measured, path, complete)
    _write(path, text)
    print(f"wrote {path}" if old is None else f"brought {path} up to date")
    _report(replace(settings, catalogue=path))
    _say_how_to_use(path, settings)
    return 0


def _found(listings: Sequence[HostListing], default_host: str) -> list[Table]:
    """Return the tables of the models found. Raises `NoModelAvailable` with what to do where there is none."""
    if all(listing.problem for listing in listings):
        raise NoModelAvailable(
            f"no host answers ({'; '.join(listing.problem for listing in listings)}); start it with `ollama serve`, or "
            "name yours in OLLAMA_HOST or --hosts"
        )
    for listing in listings:
        if listing.problem:
            print(f"left out: {listing.problem}")
    tables = tables_of(listings, default_host)
    if not tables:
        names = [model.name for listing in listings for model in listing.models]
        where = ", ".join(without_credentials(listing.url) for listing in listings if not listing.problem)
        only = f"only models that do not chat ({', '.join(names[:3])})" if names else "no model"
        raise NoModelAvailable(f"{where} has {only}; install one that does, for example: ollama pull llama3.2:3b")
    return tables


def _measure(listings: Sequence[HostListing], tables: Sequence[Table], limit_s: float) -> dict[str, Measurement]:
    """Measure each model on the first host that has it."""
    every = [model for listing in listings for model in listing.models]
    measured = {}
    for name in track([table["name"] for table in tables], "measuring"):
        listed = next(model for model in every if model.name == name)
        found = measure(listed, limit_s)
        if isinstance(found, Measurement):
            measured[name] = found
        else:
            print(f"{name}: not measured, {found}")
    return measured


def _as_loaded(table: Table, measurement: Measurement | None) -> Table:
    """Return the table with the window that the host gave the model when it was loaded."""
    if measurement is None or measurement.context_tokens is None:
        return table
    return {**table, "context_window_tokens": measurement.context_tokens}


def _write(path: Path, text: str) -> None:
    """Replace the file, once the text is known to load."""
    trial = path.with_name(f".{path.name}.new")
    with atomic_file(trial) as file:
        file.write(text.encode())
    try:
        load_catalogue(trial)
        if path.exists():
            path.replace(path.with_name(f"{path.name}.bak"))
        trial.replace(path)
    finally:
        trial.unlink(missing_ok=True)


def _report(settings: Settings) -> None:
    catalogue = load_catalogue(settings.catalogue)
    rows = [("model", "role", "parameters", "context", "right", "seconds", "source")]
    for arm in catalogue.arms:
        success, seconds = (sum(values.values()) / len(values) for values in (arm.prior.success, arm.prior.latency_s))
        size = "?" if arm.parameters_b is None else f"{arm.parameters_b:g}B {arm.quantisation}"
        rows.append((arm.key, arm.role or "-", size, f"{arm.context_window_tokens or '?'}", f"{success:.2f}",
                     f"{seconds:.1f}", arm.prior.latency_source))  # fmt: skip
    print()
    print_table(rows, left=range(4))
    print('"right" is what the library expects of an assistant\'s queries; "source" is where the seconds come from.')
    router = Router.load_or_heuristic(settings=settings)
    decisions = router.decide_many(SAMPLE_QUERIES, policy="balanced")
    print('\nWhat the policy "balanced" would do now:\n')
    print(decision_table(SAMPLE_QUERIES, decisions, router.learned))
    found = remarks(catalogue)
    if found:
        print()
    for remark in found:
        print(remark)


def _say_how_to_use(path: Path, settings: Settings) -> None:
    if path != settings.state_dir / OWN_CATALOGUE and path != settings.catalogue:
        print(f"\nuse it: ROUTER_ML_CATALOGUE={path}")
    print("\nnext: router-ml serve")
