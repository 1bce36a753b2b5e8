"""Attention heads: exact where the truth is wired in, equal to independent computations on every family, silent where nothing is."""

import numpy as np
import pytest
import torch
from scipy import stats
from tests.conftest import FAMILIES
from tests.wired import CONTEXT_HEAD, MEMORY_HEAD, known_facts, wired

from nullius.instruments import heads, interventions, knockout, resume, taps
from nullius.instruments.head_choice import choose
from nullius.instruments.heads import Contrast, Head, Scaling
from nullius.stimuli import capitals
from nullius.stimuli.prompts import Stimuli

PROMPTS = ("The capital of Poland is Rome.", "Kabul", "In Peru, people speak Spanish and some other languages", "So what?")


def contest(model, facts, each=2, seed=0):
    items = capitals.conflicts(facts, each, np.random.default_rng(seed), model.first_token)
    first, second = (tuple(map(model.first_token, items.field(name))) for name in ("context_answer", "memory_answer"))
    return items, Contrast(tuple(items.field("prompt")), first, second)


@pytest.fixture(scope="module")
def strengths():
    rng = np.random.default_rng(0)
    return {fact.country: float(np.clip(rng.logistic(2.0, 0.6), 0.2, 6)) for fact in known_facts()}


@pytest.fixture(scope="module", params=["head", "mlp"])
def planted(request, strengths):
    return request.param, wired(strengths, request.param)


# --- planted and null ---


def test_attribution_ranks_the_wired_heads_and_no_other(planted):
    memory, model = planted
    _, contrast = contest(model, Stimuli.of(known_facts()))
    table = heads.attribution(model, contrast).mean(0)
    ranked = heads.extremes(table, 1)
    assert ranked[0] == Head(*CONTEXT_HEAD)
    rest = table.clone()
    rest[CONTEXT_HEAD] = rest[MEMORY_HEAD] = 0
    assert table[CONTEXT_HEAD] > 100 * rest.abs().max()
    if memory == "head":
        assert ranked[1] == Head(*MEMORY_HEAD)
        assert -table[MEMORY_HEAD] > 100 * rest.abs().max()
    else:  # nothing to find: the head that carries the country's name writes for no answer
        assert abs(table[MEMORY_HEAD]) <= rest.abs().max()


def test_attribution_is_the_gain_that_was_wired_in(strengths):
    model = wired(strengths)
    items, contrast = contest(model, Stimuli.of(known_facts()))
    table = heads.attribution(model, contrast)
    expected = np.array([strengths[country] for country in items.field("country")])
    np.testing.assert_allclose((-table[:, *MEMORY_HEAD] / table[:, *CONTEXT_HEAD]).numpy(), expected, rtol=1e-3)


def test_the_rate_follows_the_gains(strengths):
    model = wired(strengths)
    items, contrast = contest(model, Stimuli.of(known_facts()))
    factors = (-3.0, 0.0, 1.0, 1.5, 2.0, 3.0, 5.0)
    outcome = heads.sweep(model, contrast, [Scaling(Head(*CONTEXT_HEAD), factor) for factor in factors])
    strength = np.array([strengths[country] for country in items.field("country")])
    for row, factor in enumerate(factors):
        clear = abs(strength - factor) > 0.05  # nearer than that, the faint noise of other heads decides
        np.testing.assert_array_equal(outcome.first[row, clear], (strength < factor)[clear])
        np.testing.assert_array_equal(outcome.second[row, clear], (strength > factor)[clear])


def test_ablation_agrees_with_attribution_where_heads_act_alone(strengths):
    model = wired(strengths)
    _, contrast = contest(model, Stimuli.of(known_facts()[:12]))
    everything = heads.all_heads(model)
    table = heads.attribution(model, contrast).mean(0)
    effect = heads.effect_of_ablation(model, contrast, everything).mean(-1)
    assert stats.spearmanr(table.flatten(), effect).statistic > 0.9


# --- golden numbers ---


@pytest.mark.parametrize("family", FAMILIES)
def test_attribution_is_the_derivative_through_frozen_norms(toys, family):
    """Independent: put a factor on each head's own write, freeze every norm above it at its scale, differentiate the logits in float64."""
    model = toys[family]
    anatomy = model.anatomy
    first, second = (3, 7, 11, 200), (5, 1, 400, 9)
    found = heads.attribution(model, Contrast(PROMPTS, first, second), batch_size=3)
    for i, prompt in enumerate(PROMPTS):
        batch = model.encode([prompt])
        z = taps.read(model, batch, ["z"])["z"][:, 0].double()
        final_in = taps.read(model, batch, ["resid_post"], [anatomy.n_layers - 1])["resid_post"][0, 0].double()
        for layer in range(anatomy.n_layers):
            outputs = torch.einsum("hd,hdm->hm", z[layer], anatomy.o_weight(layer).double())
            norm = anatomy.site("attn_out", layer).module
            if norm is not anatomy.attn(layer):
                outputs = frozen(norm, outputs.sum(0), outputs)
            through = frozen(anatomy.final_norm, final_in, outputs)
            direction = (anatomy.unembedding()[first[i]] - anatomy.unembedding()[second[i]]).double()
            np.testing.assert_allclose(found[i, layer], (through @ direction).detach().numpy(), rtol=2e-3, atol=2e-5)


def frozen(norm, x, parts):
    """Norm of family-specific formula at the statistics of x, applied to parts of x (no bias)."""
    kind = type(norm).__name__
    eps = getattr(norm, "variance_epsilon", getattr(norm, "eps", 1e-5))
    weight = getattr(norm, "weight", None)
    weight = torch.ones_like(x) if weight is None else weight.detach().double()
    if "LayerNorm" in kind:
        return (parts - parts.mean(-1, keepdim=True)) / torch.sqrt(x.var(unbiased=False) + eps) * weight
    return parts / torch.sqrt((x * x).mean() + eps) * (1 + weight if "Gemma" in kind else weight)


@pytest.mark.parametrize("family", FAMILIES)
def test_resumed_passes_equal_whole_ones(toys, family):
    model = toys[family]
    batch = model.encode(PROMPTS)
    whole = model.hidden(batch)
    for layer in range(model.anatomy.n_layers):
        last, kept = resume.run_keeping(model, batch, [layer])
        with resume.from_layer(model, layer, kept[layer]):
            torch.testing.assert_close(model.hidden(batch), whole)
        torch.testing.assert_close(last, whole[:, -1])
    assert torch.equal(model.hidden(batch), whole)
    assert not any("forward" in vars(block) for block in model.anatomy.layers)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_sweep_equals_single_edited_passes(toys, family):
    model = toys[family]
    contrast = Contrast(PROMPTS, (3, 7, 11, 200), (5, 1, 400, 9))
    settings = [None, *(Scaling(head, factor) for head in heads.all_heads(model)[::3] for factor in (-2.0, 0.0, 3.0))]
    outcome = heads.sweep(model, contrast, settings, rows=6)
    for s, setting in enumerate(settings):
        for i, prompt in enumerate(PROMPTS):
            with torch.no_grad(), heads.scaled(model, [setting]):
                logits = model.logits(model.encode([prompt]))[0]
            assert outcome.token[s, i] == logits.argmax()
            assert outcome.difference[s, i] == pytest.approx(float(logits[contrast.first[i]] - logits[contrast.second[i]]), abs=2e-4)


def test_a_setting_for_each_prompt(toy):
    contrast = Contrast(PROMPTS, (3, 7, 11, 200), (5, 1, 400, 9))
    own = [Scaling(Head(2, 1), 3.0), None, Scaling(Head(0, 3), -2.0), Scaling(Head(2, 0), 0.0)]
    mixed = heads.sweep(toy, contrast, [own, None]).difference
    single = heads.sweep(toy, contrast, own).difference
    np.testing.assert_allclose(mixed[0], np.diag(single), atol=1e-4)
    np.testing.assert_allclose(mixed[1], single[1], atol=1e-4)


def test_no_token_sees_another_where_all_heads_are_silenced(toy):
    batch = toy.encode(["Rome and Peru", "Kabul and Peru"])
    one, two = knockout.last_logits(toy, batch, [heads.all_heads(toy)] * 2)
    torch.testing.assert_close(one, two)
    seen = toy.logits(batch)
    assert not torch.allclose(seen[0], seen[1])


def test_only_one_query_head_is_scaled_where_several_share_their_values(toy):
    batch = toy.encode(["Rome is the capital of Peru"])
    assert toy.anatomy.n_kv_heads < toy.anatomy.n_heads
    before = taps.read(toy, batch, ["z", "v"], positions="all")
    with heads.scaled(toy, [Scaling(Head(1, 2), 5.0)]):
        after = taps.read(toy, batch, ["z", "v"], positions="all")
    torch.testing.assert_close(after["z"][1, :, :, 2], 5 * before["z"][1, :, :, 2])
    torch.testing.assert_close(after["z"][1, :, :, [0, 1, 3]], before["z"][1, :, :, [0, 1, 3]])
    torch.testing.assert_close(after["v"][1], before["v"][1])


def test_scaling_by_one_changes_nothing(toy):
    contrast = Contrast(PROMPTS, (3, 7, 11, 200), (5, 1, 400, 9))
    plain, one = heads.sweep(toy, contrast, [None, Scaling(Head(1, 0), 1.0)]).difference
    np.testing.assert_allclose(plain, one, atol=1e-5)


def test_means_leave_padding_out(toy):
    mean = interventions.means(toy, PROMPTS, "z", batch_size=4)
    alone = [taps.read(toy, toy.encode([prompt]), ["z"], positions="all")["z"][:, 0] for prompt in PROMPTS]
    torch.testing.assert_close(mean, torch.cat(alone, 1).mean(1), rtol=1e-4, atol=1e-5)


def test_mean_ablation_replaces_a_head_by_its_mean(toy):
    mean = interventions.means(toy, PROMPTS, "z")
    contrast = Contrast(PROMPTS[:1], (3,), (5,))
    effect = heads.effect_of_ablation(toy, contrast, [Head(1, 2)], around=mean)

    def replaced(z):
        z = z.clone()
        z[:, :, 2] = mean[1, 2]
        return z

    with torch.no_grad():
        plain = toy.logits(toy.encode(PROMPTS[:1]))[0]
        with taps.edit(toy, "z", 1, replaced):
            edited = toy.logits(toy.encode(PROMPTS[:1]))[0]
    assert effect[0, 0] == pytest.approx(float((plain[3] - plain[5]) - (edited[3] - edited[5])), abs=1e-4)


# --- choosing ---


def test_random_heads_come_from_the_same_layers_and_are_never_the_chosen_ones(toys):
    model = toys["gpt2"]
    chosen = [Head(1, 0), Head(1, 2)]
    two = heads.random_heads(model, chosen, 2, np.random.default_rng(0))
    assert set(two) == {Head(1, 1), Head(1, 3)}
    many = heads.random_heads(model, chosen, 50, np.random.default_rng(0))
    assert len(set(many)) == len(many) == model.anatomy.n_layers * model.anatomy.n_heads - 2
    assert not set(many) & set(chosen)


def test_extremes_are_the_highest_and_the_lowest():
    table = torch.tensor([[1.0, -2.0], [3.0, 0.0]])
    assert heads.extremes(table, 1) == [Head(1, 0), Head(0, 1)]
    assert len(heads.extremes(table, 3)) == 4


def test_other_answers_are_never_a_prompts_own():
    contrast = Contrast(PROMPTS, (3, 7, 11, 200), (5, 1, 400, 9))
    other = contrast.with_others([3, 5, 7, 9], np.random.default_rng(0))
    for first, second, own in zip(other.first, other.second, zip(contrast.first, contrast.second, strict=True), strict=True):
        assert len({first, second, *own}) == 4


def test_the_wired_heads_are_chosen_for_their_sides_and_beat_random_ones(planted):
    memory, model = planted
    facts = Stimuli.of(known_facts())
    tuning, testing = facts.split(0.4, np.random.default_rng(0))
    _, tune = contest(model, tuning)
    _, test = contest(model, testing)
    candidates = heads.extremes(heads.attribution(model, tune).mean(0), 3)
    choices = choose(model, tune, candidates, (-2.0, 0.0, 2.0, 5.0), np.random.default_rng(1))
    towards = choices["first"]
    assert towards.chosen == Scaling(Head(*CONTEXT_HEAD), 5.0)
    if memory == "head":
        assert choices["second"].chosen.head in (Head(*MEMORY_HEAD), Head(*CONTEXT_HEAD))
    assert not {scaling.head for scaling in towards.random} & set(candidates)
    before, after, rival, one, other, *random = towards.score(
        heads.sweep(model, test, towards.settings(len(test), np.random.default_rng(2)))
    )
    assert after.mean() - before.mean() > 0.5
    assert after.mean() - rival.mean() > 0.5
    if memory == "head":  # with memory in the MLP, the head that carries the country's name is one of the random ones, and matters
        assert abs(one - other).mean() < 0.05
        assert abs(np.mean(random, 0) - before).mean() < 0.05


def test_no_head_is_worth_choosing_where_none_matters(strengths):
    model = wired(strengths)
    tuning, testing = Stimuli.of(known_facts()).split(0.4, np.random.default_rng(0))
    (_, tune), (_, test) = contest(model, tuning), contest(model, testing)
    faint = [head for head in heads.all_heads(model) if head.layer > 0]
    for choice in choose(model, tune, faint[:6], (-5.0, 0.0, 5.0), np.random.default_rng(1), n_random=10).values():
        before, after, rival, *_ = choice.score(heads.sweep(model, test, choice.settings(len(test), np.random.default_rng(2))))
        assert abs(after - before).mean() < 0.05
        assert abs(after - rival).mean() < 0.05
