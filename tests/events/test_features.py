"""Features kept instead of text: what is stored, what comes back, and what is left out."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from router_ml.decide.router import Router
from router_ml.errors import InputError
from router_ml.events.connect import open_store
from router_ml.events.event import as_dict, decision_event, from_dict
from router_ml.events.features import KeptFeatures, pack, unpack
from router_ml.events.retention import Retention
from router_ml.settings import Settings

DAY_S = 86_400.0


def kept(seed: int = 0, d: int = 768, m: int = 60) -> KeptFeatures:
    rng = np.random.default_rng(seed)
    vector = rng.normal(size=d).astype(np.float32)
    return KeptFeatures("key", vector / np.linalg.norm(vector), rng.normal(size=m).astype(np.float32))


def test_a_packed_vector_points_where_it_pointed_and_is_small() -> None:
    before = kept()
    packed = pack(before)
    after = unpack(packed, "key")
    assert float(before.embedding @ after.embedding) > 0.9999
    assert np.abs(before.table - after.table).max() < 0.002
    assert len(packed) < 1300  # characters of a decision with 768 dimensions and 60 columns


def test_features_without_a_vector_or_with_huge_numbers_are_packed_too() -> None:
    after = unpack(pack(KeptFeatures("k", np.zeros(4, np.float32), np.array([1e9], np.float32))), "k")
    assert after.embedding.tolist() == [0.0] * 4
    assert after.table.tolist() == [65_504.0]  # the largest number of half precision


@pytest.mark.parametrize("broken", ["", "!", "AAAA", pack(kept())[:-8], "A" * 500_000])
def test_broken_features_are_an_input_error(broken: str) -> None:
    with pytest.raises(InputError, match="kept features cannot be read"):
        unpack(broken, "key")


def test_no_word_of_the_query_is_stored_with_its_features(tiny_bundle: Path, tmp_path: Path) -> None:
    router = Router.load(tiny_bundle, settings=Settings(keep="features"))
    decision = router.decide("call Zanzibar about the platypus", {"history": ["aardvark"]})
    event = decision_event(decision, text="call Zanzibar about the platypus", at_s=40 * DAY_S)
    assert from_dict(as_dict(event)).decision_id == event.decision_id
    store = open_store(tmp_path, keep_features=True)
    store.append([event])
    [stored] = store.features()
    assert stored.decision_id == decision.decision_id
    assert float(unpack(stored.packed, stored.encoder).embedding @ decision.features.embedding) > 0.999
    assert list(store.texts()) == []
    store.close()
    raw = b"".join(path.read_bytes() for path in tmp_path.iterdir() if path.name.startswith("events.db"))
    assert b"platypus" not in raw
    assert b"Zanzibar" not in raw


def test_features_go_when_texts_would(tmp_path: Path, tiny_bundle: Path) -> None:
    router = Router.load(tiny_bundle, settings=Settings(keep="features"))
    store = open_store(tmp_path, keep_features=True)
    store.append(
        [decision_event(router.decide("hello"), at_s=0.0), decision_event(router.decide("hi"), at_s=9 * DAY_S)]
    )
    assert store.prune({"features": Retention().before(31 * DAY_S)["features"]}) == 1
    assert len(list(store.features())) == 1
    assert len(list(store.read())) == 2


def test_features_are_kept_only_where_the_setting_says_so(tiny_bundle: Path, tmp_path: Path) -> None:
    assert Router.load(tiny_bundle, settings=Settings()).decide("hello").features is None
    assert Router.load(tiny_bundle, settings=Settings(keep="text")).decide("hello").features is None
    store = open_store(tmp_path)
    store.append([decision_event(Router.load(tiny_bundle, settings=Settings(keep="features")).decide("hello"))])
    assert list(store.features()) == []


def test_two_bundles_with_one_encoder_share_the_key(tiny_bundle: Path) -> None:
    settings = Settings(keep="features")
    [one, two] = [Router.load(tiny_bundle, settings=settings).decide(text).features for text in ("hello", "bye")]
    assert one.encoder == two.encoder
