"""What the shipped corpus must be, and that the checks find what they look for."""

from __future__ import annotations

import collections
from pathlib import Path

import numpy as np
import pytest

from benchmarks.labelling import SECOND, read_agreement
from router_ml.jsonl import query_row, read_queries, write_rows
from router_ml.types import LABELS, Query
from training.corpus import (
    BALANCE,
    MAX_FRAME_USES,
    check_corpus,
    corpus_path,
    data_dir,
    data_sha256,
    main,
    near_duplicates,
    whole_text,
)
from training.splits import group_of, is_test


@pytest.fixture(scope="module")
def corpus() -> list[Query]:
    return read_queries(corpus_path())


def test_the_corpus_is_sound(corpus: list[Query]) -> None:
    assert check_corpus(corpus) == []


def test_the_corpus_is_large_and_balanced(corpus: list[Query]) -> None:
    assert len(corpus) >= 3000
    counts = collections.Counter(query.label for query in corpus)
    assert set(counts) == set(LABELS)
    assert all(0.20 <= count / len(corpus) <= 0.30 for count in counts.values())


def test_the_corpus_is_diverse(corpus: list[Query]) -> None:
    assert len({query.extra["domain"] for query in corpus}) >= 30
    languages = collections.Counter(query.extra["language"] for query in corpus)
    assert len(set(languages) - {"en"}) >= 6
    assert 1 - languages["en"] / len(corpus) >= 0.08
    assert len({query.extra["voice"] for query in corpus}) >= 8
    assert sum(query.raw_context is not None for query in corpus) >= 4_500
    with_history = [query for query in corpus if query.context.history]
    assert {query.label for query in with_history} == set(LABELS)
    assert sum(bool(query.context.tools) for query in corpus) >= 50
    assert sum(bool(query.context.attachment) for query in corpus) >= 50


def test_the_corpus_defeats_shallow_cues(corpus: list[Query]) -> None:
    plain = {"plain", "smalltalk", "fact", "multi_value", "two_agents", "trigger", "missing_value", "missing_object"}
    assert sum(query.slice not in plain for query in corpus) / len(corpus) >= 0.35

    def words(query: Query) -> int:
        return len(query.text.split())

    assert sum(q.label == "simple" and words(q) >= 20 for q in corpus) >= 100
    assert sum(q.label == "complex" and words(q) <= 5 for q in corpus) >= 50
    assert sum(q.label == "ambiguous" and words(q) >= 20 for q in corpus) >= 50
    assert sum(q.label == "complex" and " and " not in q.text.lower() for q in corpus) >= 200
    assert sum(q.label == "simple" and " and " in q.text.lower() for q in corpus) >= 50


def test_labels_and_length_are_not_the_same_thing(corpus: list[Query]) -> None:
    """The best guess from length alone stays near what the commonest label gives."""
    lengths = np.array([len(query.text.split()) for query in corpus])
    labels = np.array([LABELS.index(query.label) for query in corpus if query.label])
    guess = 0
    for length in np.unique(np.minimum(lengths, 40)):
        guess += np.bincount(labels[np.minimum(lengths, 40) == length]).max()
    assert guess / len(corpus) < 0.55


def test_groups_hold_paraphrases_on_one_side(corpus: list[Query]) -> None:
    sides: dict[str, set[bool]] = {}
    for query in corpus:
        sides.setdefault(group_of(query), set()).add(is_test(group_of(query)))
    assert all(len(side) == 1 for side in sides.values())
    texts: dict[str, set[str]] = {}
    for query in corpus:
        texts.setdefault(" ".join(query.text.lower().split()), set()).add(group_of(query))
    apart = [text for text, groups in texts.items() if len(groups) > 1 and len(text.split()) > 6]
    assert not apart[:5]


def test_enough_rows_were_labelled_twice(corpus: list[Query]) -> None:
    agreement = read_agreement(data_dir() / SECOND)
    assert agreement.rows >= 600
    assert agreement.kappa >= 0.6  # "substantial" (Landis and Koch 1977)


def _queries(texts: list[str]) -> list[Query]:
    return [Query(f"q{i}", text, label=LABELS[i % 4]) for i, text in enumerate(texts)]


def test_checks_find_what_they_look_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert check_corpus(_queries([f"text {i}" for i in range(8)])) == []
    assert [f.check for f in check_corpus(_queries(["Same", "b", "c", "same"]))] == ["repeated text"]
    lopsided = [Query(f"q{i}", f"t{i}", label="simple") for i in range(4)]
    assert {f.check for f in check_corpus(lopsided)} == {"label balance"}
    framed = _queries([f"please could you now {i}" for i in range(4 * MAX_FRAME_USES)])
    assert {f.check for f in check_corpus(framed)} == {"frame"}
    write_rows(tmp_path / "bad.jsonl", [query_row(query) for query in lopsided])
    assert main([str(tmp_path / "bad.jsonl"), "--no-vectors"]) == 1
    assert "label balance" in capsys.readouterr().out


def test_one_text_under_two_contexts_is_no_repeat() -> None:
    from router_ml.context import parse_context

    rows = [Query("a", "send it", label="ambiguous"),
            Query("b", "send it", parse_context({"history": ["the report"]}), "simple")]  # fmt: skip
    assert not [finding for finding in check_corpus(rows) if finding.check == "repeated text"]


def test_near_duplicates_across_the_split_are_found() -> None:
    names = [f"g{i}" for i in range(100)]
    inside = next(name for name in names if is_test(name))
    outside = [name for name in names if not is_test(name)][:2]
    rows = [Query(name, name, group=name) for name in (inside, *outside)]
    vectors = np.array([[1, 0], [0.999, 0.0447], [0, 1]], np.float32)
    assert [finding.detail for finding in near_duplicates(rows, vectors)] == [f"{inside} and {outside[0]}"]


@pytest.mark.parametrize("text", ["", "no json\n"])
def test_a_file_that_is_no_corpus_is_one_line(tmp_path: Path, text: str, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "x.jsonl").write_text(text)
    assert main([str(tmp_path / "x.jsonl"), "--no-vectors"]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_the_data_hash_follows_the_rows_and_not_their_order(tmp_path: Path) -> None:
    rows = _queries(["a", "b", "c"])
    assert data_sha256(rows) == data_sha256(rows[::-1])
    assert data_sha256(rows) != data_sha256(rows[:2])
    assert data_sha256(rows) != data_sha256([*rows[:2], Query("q2", "c", label="simple")])
    (tmp_path / "o").write_text("x")
    assert data_sha256(rows, tmp_path / "o") != data_sha256(rows) == data_sha256(rows, None)
    assert BALANCE == (0.20, 0.30)


def test_the_held_out_writer_wrote_no_training_row(corpus: list[Query]) -> None:
    held = read_queries(data_dir() / "heldout_writer.jsonl")
    assert len(held) >= 650
    known = {whole_text(query).lower() for query in corpus}
    assert not [query.id for query in held if whole_text(query).lower() in known]
    assert {query.extra["writer"] for query in held}.isdisjoint(query.extra.get("writer") for query in corpus)


def test_the_held_out_rows_are_nobodys_training_rows(corpus: list[Query]) -> None:
    held = read_queries(data_dir() / "heldout.jsonl")
    assert len(held) >= 400
    assert [finding for finding in check_corpus(held) if finding.check != "frame"] == []
    known = {whole_text(query).lower() for query in corpus}
    assert not [query.id for query in held if whole_text(query).lower() in known]
    assert sum(query.extra["language"] != "en" for query in held) / len(held) >= 0.5
    assert read_agreement(data_dir() / "heldout_second_labels.jsonl").rows == len(held)
