"""Features that were kept instead of text, read for a fit: `router-ml events export --what features`."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from router_ml.bundles.format import Bundle
from router_ml.decide.features.extractor import TABLE_NAMES, Features
from router_ml.errors import InputError, RowError
from router_ml.events.features import KeptFeatures, encoder_key, unpack
from router_ml.types import Query


def read_features(path: Path, bundle: Bundle) -> tuple[list[Query], Features]:
    """Return queries without text and their features, of those rows that a bundle's encoder has made.

    Raises `InputError` if the file cannot be read, `RowError` for a bad row."""
    wanted, others = encoder_key(bundle.manifest, TABLE_NAMES), 0
    queries, kept = [], []
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError) as error:
        raise InputError(f"cannot read {path}: {error}; give the path of exported features") from error
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
            if row["encoder"] != wanted:
                others += 1
                continue
            kept.append(unpack(row["packed"], wanted))
            queries.append(Query(str(row["id"]), ""))
        except (ValueError, KeyError, TypeError, InputError) as error:
            raise RowError(
                str(path), number, "packed", f"are not kept features ({error}); export them again"
            ) from error
    if others and not queries:
        raise InputError(
            f"{path}: all {others} rows were made by another encoder than that of {bundle.path}; "
            "promote the bundle that served then, or wait for new traffic"
        )
    return queries, stacked(kept)


def stacked(kept: Iterable[KeptFeatures]) -> Features:
    """Return kept features of one encoder as arrays."""
    rows = list(kept)
    if not rows:
        return Features(np.zeros((0, 0), np.float32), np.zeros((0, len(TABLE_NAMES)), np.float32))
    return Features(np.stack([row.embedding for row in rows]), np.stack([row.table for row in rows]))
