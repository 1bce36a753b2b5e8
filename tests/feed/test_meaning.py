"""Search by meaning: texts embedded one after the other, papers that are alike, and the file of vectors."""

import math

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nullius.errors import UsageError
from nullius.feed import database as feed_database
from nullius.feed import papers, similar
from nullius.feed.importers import store
from nullius.feed.search import embedding, engine, minilm, vectors, words

from .made import paper
from .searching import fill


def test_embedding_goes_newest_first_follows_changes_and_survives_a_kill(database, bag, monkeypatch):
    fill()
    assert embedding.missing(100) == 56
    monkeypatch.setattr(embedding, "BATCH", 8)
    embedding.embed(most=8)
    held = vectors.open_vectors(words.folder() / "vectors")
    assert papers.find("protocols").id in held.numbers
    assert papers.find("dissociating-language").id not in held.numbers
    with pytest.MonkeyPatch.context() as patch:  # killed between the database and the files

        def killed(*_):
            raise KeyboardInterrupt

        patch.setattr(vectors, "append", killed)
        with pytest.raises(KeyboardInterrupt):
            embedding.embed()
    embedding.embed()
    assert len(vectors.open_vectors(words.folder() / "vectors")) == 56
    assert embedding.embed() == 0
    with feed_database.writing() as connection:
        store.write(connection, [paper(1, version=2, title="Sharks")])
    assert embedding.missing(10) == 1  # its old vector was of another text
    assert embedding.embed() == 1
    held = vectors.open_vectors(words.folder() / "vectors")
    assert (len(held), len(held.numbers)) == (56, 57)
    words.throw_away()
    embedding.embed()
    assert len(vectors.open_vectors(words.folder() / "vectors")) == 56


def test_a_text_that_changes_while_it_is_embedded_is_embedded_again(sqlite, bag, monkeypatch):
    fill()
    embedding.embed()
    with feed_database.writing() as connection:
        store.write(connection, [paper(1, version=2, title="Sharks")])
    made, seen = embedding._encoder("cpu"), []

    def slow(texts):
        if not seen:
            with feed_database.writing() as connection:
                store.write(connection, [paper(1, version=3, title="Rays")])
        seen.append(list(texts))
        return made(texts)

    monkeypatch.setattr(embedding, "_encoder", lambda device: slow)
    embedding.embed()
    assert [[text.split(".")[0] for text in texts] for texts in seen] == [["Sharks"], ["Rays"]]
    assert embedding.missing(10) == 0


def test_why_says_by_what_a_paper_was_found(sqlite, bag):
    fill()
    words.open_index().update()
    embedding.embed()
    whys = {hit.card.title: hit.why for hit in engine.search("whales briefly dolphins").hits}
    assert whys["Dolphins"] in ("both", "known")


def test_similar_papers_by_meaning_date_and_instrument(database, bag):
    fill()
    words.open_index().update()
    embedding.embed()
    number = papers.find("2401.00001").id
    assert similar.similar(number)[0].arxiv_id == "2401.00002"
    dates = [card.published for card in similar.similar(number, by="newest")]
    assert dates == sorted(dates, reverse=True)
    assert len(similar.similar(number, by="instrument")) == similar.HOW_MANY
    with pytest.raises(UsageError):
        similar.similar(number, by="colour")


def test_similar_papers_without_vectors(sqlite, no_weights):
    number = papers.find("gla").id
    found = similar.similar(number)
    assert found
    assert number not in [card.id for card in found]


@given(st.integers(0, 2**32 - 1), st.integers(1, 60), st.integers(1, 20))
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_the_nearest_are_those_of_a_plain_product(tmp_path_factory, seed, rows, limit):
    where = tmp_path_factory.mktemp("vectors")
    generator = np.random.default_rng(seed)
    made = generator.standard_normal((rows + 3, minilm.WIDTH)).astype(np.float32)
    made /= np.linalg.norm(made, axis=1, keepdims=True)
    numbers = [*range(10, 10 + rows), 10, 11, 10]  # some were embedded again
    vectors.append(where, numbers[:rows], *vectors.quantise(made[:rows]))
    vectors.append(where, numbers[rows:], *vectors.quantise(made[rows:]))
    held = vectors.open_vectors(where)
    latest = {number: made[i] for i, number in enumerate(numbers)}
    query = generator.standard_normal(minilm.WIDTH).astype(np.float32)
    query /= np.linalg.norm(query)
    found, cosines = held.nearest(query, limit)
    expected = sorted((float(latest[number] @ query) for number in latest), reverse=True)[:limit]
    assert np.allclose(cosines, expected, atol=0.01)
    assert len(set(found)) == len(found) == min(limit, len(latest))
    some = np.array(sorted(latest)[::2], np.int64)
    assert set(held.nearest(query, 99, some)[0]) == set(some.tolist())


def test_signs_choose_nearly_what_a_product_would(tmp_path, monkeypatch):
    generator = np.random.default_rng(0)
    centres = generator.standard_normal((40, minilm.WIDTH))
    made = (centres[generator.integers(40, size=4000)] + 0.7 * generator.standard_normal((4000, minilm.WIDTH))).astype(np.float32)
    made /= np.linalg.norm(made, axis=1, keepdims=True)
    vectors.append(tmp_path, range(4000), *vectors.quantise(made))
    held = vectors.open_vectors(tmp_path)
    query = made[7]
    exact = held.nearest(query, 10)[0]
    monkeypatch.setattr(vectors, "EXACT", 100)
    assert len(set(held.nearest(query, 10)[0]) & set(exact)) >= 9
    assert held.nearest(query, 1)[0] == [7]


def test_many_vectors_that_grow_are_opened_again_after_a_while(tmp_path, monkeypatch):
    made, scales = vectors.quantise(np.random.default_rng(0).standard_normal((4, minilm.WIDTH)).astype(np.float32))
    clock = [1000.0]
    monkeypatch.setattr(vectors.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(vectors, "MANY", 2)
    rows = []
    for number in (1, 2, 3, 4):
        vectors.append(tmp_path, [number], made[:1], scales[:1])
        rows.append(len(vectors.open_vectors(tmp_path)))
    assert rows == [1, 2, 3, 3]
    vectors.append(tmp_path, [5], made[:1], scales[:1])
    vectors.forget(tmp_path)
    assert len(vectors.open_vectors(tmp_path)) == 5
    vectors.append(tmp_path, [6], made[:1], scales[:1])
    assert len(vectors.open_vectors(tmp_path)) == 5
    clock[0] += vectors.PATIENCE
    assert len(vectors.open_vectors(tmp_path)) == 6
    for path in tmp_path.iterdir():  # made anew by another process
        path.unlink()
    vectors.append(tmp_path, [9], made[:1], scales[:1])
    assert vectors.open_vectors(tmp_path).numbers.tolist() == [9]


def test_signs_are_made_for_vectors_from_before_there_were_any(tmp_path):
    made, scales = vectors.quantise(np.random.default_rng(0).standard_normal((5, minilm.WIDTH)).astype(np.float32))
    signs = np.packbits(made > 0, axis=1).view(np.uint64)
    vectors.append(tmp_path, [1, 2, 3], made[:3], scales[:3])
    whole = (tmp_path / "signs.u64").read_bytes()
    (tmp_path / "signs.u64").write_bytes(whole[:50])  # torn
    assert np.array_equal(vectors.Vectors(tmp_path)._signs, signs[:3])
    vectors.append(tmp_path, [4, 5], made[3:], scales[3:])
    assert (tmp_path / "signs.u64").read_bytes() == signs.tobytes()


def test_a_torn_write_is_cut_off(tmp_path):
    made = np.eye(3, minilm.WIDTH, dtype=np.float32)
    vectors.append(tmp_path, [1, 2, 3], *vectors.quantise(made))
    with (tmp_path / "vectors.i8").open("ab") as file:
        file.write(b"torn")
    vectors.append(tmp_path, [4], *vectors.quantise(made[:1]))
    assert vectors.open_vectors(tmp_path).numbers.tolist() == [1, 2, 3, 4]
    assert math.isclose(float(vectors.open_vectors(tmp_path).of(4)[0]), 1, abs_tol=0.01)
