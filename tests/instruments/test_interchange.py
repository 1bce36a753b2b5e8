"""Causal models and interchange interventions: what is planted where, against whole runs; unequal lengths; the mixture of pointers."""

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import jensenshannon
from tests.conftest import FAMILIES

from nullius.errors import UsageError
from nullius.instruments import binding_pointers, interchange, pointer_mixture, taps
from nullius.instruments.causal_models import CausalModel, Variable
from nullius.instruments.interchange import At
from nullius.instruments.planted import binding, modular
from nullius.lab.calibrations.interchange import OTHERS, PLACES, SUM, _pairs
from nullius.stimuli import binding as tasks

numbers = st.integers(-5, 5)


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(numbers, numbers, numbers, numbers)
def test_interchange_of_a_causal_model_is_what_it_says(a, b, c, d):
    model = CausalModel(("x", "y"), (Variable("p", ("x", "y"), lambda x, y: x * y), Variable("q", ("p", "y"), lambda p, y: p - y)), "q")
    assert model.run({"x": a, "y": b})["q"] == a * b - b
    assert model.interchange({"x": a, "y": b}, {"x": c, "y": d}, ["p"])["q"] == c * d - b
    assert model.interchange({"x": a, "y": b}, {"x": c, "y": d}, []) == model.run({"x": a, "y": b})


def test_causal_models_refuse_what_does_not_exist():
    with pytest.raises(UsageError, match="'z', which is neither"):
        CausalModel(("x",), (Variable("p", ("z",), lambda z: z),), "p")
    with pytest.raises(UsageError, match="needs a value of its input 'y'"):
        SUM.run({"x": 1})
    with pytest.raises(UsageError, match="no 'summ'"):
        SUM.interchange({"x": 1, "y": 1}, {"x": 1, "y": 1}, ["summ"])
    with pytest.raises(UsageError, match="no pair changes"):
        interchange.counterfactuals(SUM, [({"x": 1, "y": 1}, {"x": 1, "y": 2})], ["a"], str, int)


@pytest.mark.parametrize("variable", PLACES)
def test_a_variable_is_found_where_it_lies_and_nowhere_else(variable):
    model, rng = modular.build(), np.random.default_rng(0)
    pairs = _pairs(model, variable, 60, rng)
    for at in PLACES[variable]:
        assert interchange.accuracy(model, pairs, at).mean() == 1
        assert interchange.accuracy(model, pairs.placebo(rng), at).mean() < 0.5
    for at in OTHERS:
        assert interchange.accuracy(model, pairs, at).mean() == 0


def test_a_split_shares_no_base_text():
    model = modular.build()
    first, second = _pairs(model, "a", 200, np.random.default_rng(0)).split(np.random.default_rng(1))
    assert first.base
    assert second.base
    assert not set(first.base) & set(second.base)


def test_unequal_lengths_are_aligned_by_role_or_shown_side_by_side(toy):
    base, source = ("The old man saw the river and",), ("The very old man by the garden saw the river and",)
    pairs = interchange.Counterfactuals(base, source, (5,), (6,))
    with pytest.raises(UsageError, match="different lengths") as error:
        interchange.transplant(toy, pairs, At("resid_post", 1, 3))
    lines = str(error.value).splitlines()
    assert lines[1].lstrip().startswith("base")
    assert lines[2].lstrip().startswith("source")
    role = At("resid_post", 1, lambda text: text[: text.index(" saw") + 4])
    moved = interchange.transplant(toy, pairs, role)
    there, here = (toy.encode([text[: text.index(" saw") + 4]]).input_ids.shape[1] - 1 for text in (source[0], base[0]))
    state = taps.read(toy, toy.encode(source), ["resid_post"], [1], positions="all")["resid_post"][0][0, there]

    def put(x):
        x = x.clone()
        x[0, here] = state
        return x

    with torch.no_grad(), taps.edit(toy, "resid_post", 1, put):
        plain = toy.logits(toy.encode(base))
    assert torch.allclose(moved, plain.float(), atol=1e-5)
    assert not torch.allclose(moved, toy.last_logits(base), atol=1e-3)


def test_a_role_that_cuts_a_token_is_refused(toy):
    pairs = interchange.Counterfactuals(("The capital of France is",), ("The capital of Norway is",), (5,), (6,))
    with pytest.raises(UsageError, match="does not end at a token's end"):
        interchange.transplant(toy, pairs, At("resid_pre", 0, lambda text: text[:6]))


@pytest.mark.parametrize("family", FAMILIES)
def test_the_last_token_alone_is_the_whole_run(toys, family):
    model = toys[family]
    base, source = (  # the same words in another order: of one length, however the toy's tokeniser cuts them
        ["The doctor saw the old man", "The farmer saw the old dog"],
        ["The man saw the old doctor", "The dog saw the old farmer"],
    )
    moved = interchange.last_token(model, base, source, [[5, 6, 7], [8, 9, 10]], [2, 0])
    for row, layer in enumerate((2, 0)):
        for i in range(2):
            pairs = interchange.Counterfactuals((base[i],), (source[i],), (5,), (6,))
            whole = interchange.transplant(model, pairs, At("resid_pre", layer)).detach()[0]
            assert moved.emitted[row, i] == int(whole.argmax())
            assert np.allclose(moved.candidates[row, i], whole[[[5, 6, 7], [8, 9, 10]][i]].numpy(), atol=1e-4)
    few = interchange.last_token(model, base, source, [[5, 6, 7], [8, 9, 10]], [2, 0], vocabulary=False)
    assert np.allclose(few.candidates, moved.candidates, atol=1e-4)
    assert (few.emitted == -1).all()


@pytest.fixture(scope="module")
def seen():
    model, rng = binding.build(), np.random.default_rng(0)
    asked = binding_pointers.Asked(tasks.TASKS["boxes"], binding.GROUPS, 1, 0, binding.POOLS)
    return binding_pointers.see(model, asked.grid(rng, 150), [0, binding.DECIDED])


def test_the_planted_pointers_are_where_they_are_decided_and_not_before(seen):
    assert seen[0].share("unchanged") == 1
    late = seen[binding.DECIDED]
    stated = np.array([binding.FULL.logits(*row) for row in np.stack([late.at(name) for name in pointer_mixture.TERMS], 1)])
    assert (stated[np.arange(len(stated)), late.chosen] > stated.max(1) - 0.1).all()  # equal ones are decided by the noise of unused heads
    assert late.share("unchanged") == 0


@pytest.mark.parametrize(
    ("mixture", "name"), [(binding.BY_PLACE, "positional"), (binding.BY_KEY, "lexical"), (binding.BY_ANSWER, "reflexive")]
)
def test_one_slot_alone_leaves_the_other_two_empty(mixture, name):
    asked = binding_pointers.Asked(tasks.TASKS["boxes"], binding.GROUPS, 1, 0, binding.POOLS)
    triples = asked.grid(np.random.default_rng(0), 48)
    found = binding_pointers.see(binding.build(mixture), triples, [binding.DECIDED])[binding.DECIDED]
    assert found.share(name) == 1


def test_pairs_whose_key_and_answer_meet_count_for_neither(seen):
    """A reader by answer alone says the key's group where the two are one: that is no lexical pointer."""
    asked = binding_pointers.Asked(tasks.TASKS["boxes"], binding.GROUPS, 1, 0, binding.POOLS)
    triples = asked.grid(np.random.default_rng(0), 60)
    whole = binding_pointers.see(binding.build(binding.BY_ANSWER), triples, [binding.DECIDED])[binding.DECIDED]
    apart = whole.apart()
    assert whole.lead(whole.at("lexical")).mean() > 0.1
    assert apart.share("lexical") == 0
    assert apart.share("reflexive") == 1
    assert len(apart.triples) == len(apart.chosen) == sum(t.lexical != t.reflexive for t in triples) < 60
    assert not apart.mixed().any()
    late = seen[binding.DECIDED]
    pointed = [[t.positional, t.lexical, t.reflexive, t.unchanged] for t in late.triples]
    assert late.mixed().tolist() == [chosen not in some for chosen, some in zip(late.chosen, pointed, strict=True)]


def test_a_reader_that_ignores_its_slots_does_not_move():
    asked = binding_pointers.Asked(tasks.TASKS["boxes"], binding.GROUPS, 1, 0, binding.POOLS)
    found = binding_pointers.see(binding.build(binding.BLIND), asked.grid(np.random.default_rng(0), 24), [binding.DECIDED])
    assert found[binding.DECIDED].share("unchanged") == 1


def test_the_planted_mixture_is_recovered(seen):
    train, stop, judged = seen[binding.DECIDED].cells().split(np.random.default_rng(0))
    found = pointer_mixture.fit(train, stop, epochs=1500, patience=200)
    assert np.allclose(found.width(range(6)), binding.FULL.sigma, rtol=0.1)
    assert np.allclose(found.lexical, binding.FULL.lexical, atol=0.1)
    assert np.allclose(found.reflexive, binding.FULL.reflexive, atol=0.1)
    assert found.w == pytest.approx(binding.FULL.w_pos, rel=0.05)
    assert pointer_mixture.similarity(found.predict(judged.at), judged.target).mean() > 0.99
    null = [part.permuted(np.random.default_rng(1)) for part in (train, stop, judged)]
    empty = pointer_mixture.fit(null[0], null[1], epochs=300, patience=50)
    gain = pointer_mixture.similarity(empty.predict(null[2].at), null[2].target).mean()
    assert gain <= pointer_mixture.similarity(pointer_mixture.uniform(len(judged), 6), null[2].target).mean() + 0.01


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.floats(0.01, 1), min_size=4, max_size=4), st.lists(st.floats(0.01, 1), min_size=4, max_size=4))
def test_similarity_is_that_of_scipy(a, b):
    p, q = (np.array(x) / np.sum(x) for x in (a, b))
    assert pointer_mixture.similarity([p], [q])[0] == pytest.approx(1 - jensenshannon(p, q, 2) ** 2, abs=1e-9)
