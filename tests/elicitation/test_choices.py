"""Twins: what is measured on subjects whose behaviour is known."""

import numpy as np
import pytest

from nullius.elicitation.choices import Crossed, choose, cross
from nullius.elicitation.scores import Score, score
from nullius.stimuli.twins import Twins


def crossed(scores, prior):
    scores, prior = np.asarray(scores, float), np.asarray(prior, float)
    n = len(scores)
    greedy = scores == scores.max(-1, keepdims=True)
    return Crossed(scores, prior, greedy, np.ones((n, 2), int), tuple(map(str, range(n))))


def noisy_channel(beta, n=400, seed=0):
    """Answers ∝ p(output)^beta × likelihood of the input given the output, one log-likelihood ratio per wrong letter."""
    rng = np.random.default_rng(seed)
    prior = np.stack([rng.normal(-20, 3, n), rng.normal(-30, 3, n)], 1)
    likelihood = np.zeros((n, 2, 2))
    ratio = rng.integers(1, 5, n) * 2.5
    likelihood[:, 0, 1] = likelihood[:, 1, 0] = -ratio
    return crossed(beta * prior[:, None] + likelihood, prior)


def test_an_exact_solver_has_no_pull_and_full_sensitivity():
    solver = noisy_channel(0.0)
    assert np.all(solver.pull() == 0)
    assert np.all(solver.sensitivity == 1)
    assert np.all(solver.bias == 0)
    assert np.all(solver.written() == 1)


def test_the_pull_of_a_noisy_channel_grows_with_beta():
    pulls = [noisy_channel(beta).pull().mean() for beta in (0.0, 0.5, 1.0)]
    assert pulls[0] == 0
    assert 0.1 < pulls[1] < pulls[2] - 0.1


@pytest.mark.parametrize("beta", [0.0, 0.5, 1.0])
def test_discrimination_ignores_taste(beta):
    np.testing.assert_allclose(noisy_channel(beta).discrimination, noisy_channel(0.0).discrimination, atol=1e-9)


def test_pmi_removes_exactly_a_pull_of_beta_one():
    subject = noisy_channel(1.0)
    assert subject.pull().mean() > 0.3
    assert np.all(subject.pull(corrected=True) == 0)


def test_bias_recovers_beta_as_slope_on_the_prior():
    subject = noisy_channel(0.5)
    slope = np.polyfit(subject.prior_preference, subject.bias, 1)[0]
    assert slope == pytest.approx(0.5)


def test_taste_alone_is_seen_as_chance_sensitivity():
    prior = np.array([[-1.0, -5.0]] * 10)
    taste = crossed(np.repeat(prior[:, None], 2, 1), prior)
    assert np.all(taste.pull() == 1)
    assert np.all(taste.sensitivity == 0.5)


def test_coin_flips_show_neither():
    rng = np.random.default_rng(0)
    subject = crossed(rng.normal(size=(4000, 2, 2)), np.zeros((4000, 2)))
    assert abs(subject.pull().mean()) < 0.05
    assert abs(subject.sensitivity.mean() - 0.5) < 0.03


def test_choose_with_and_without_correction():
    conditional, prior = [[-1.0, -2.0, -9.0]], [[-1.0, -5.0, -9.0]]
    assert choose(conditional).tolist() == [0]
    assert choose(conditional, prior).tolist() == [1]


def test_cross_puts_each_score_in_its_cell():
    table = {("a", "x"): 1.0, ("a", "y"): 2.0, ("b", "x"): 3.0, ("b", "y"): 4.0, ("p", "x"): 5.0, ("p", "y"): 6.0}
    twins = Twins(("a", "b"), ("x", "y"), "p", "g")

    def scorer(requests):
        return [Score((1,) * len(output), (table[context, output],), context == "a") for context, output in requests]

    found = cross(scorer, {"one": [twins], "two": [twins, twins]})
    assert found["one"].scores.tolist() == [[[1, 2], [3, 4]]]
    assert found["two"].prior.tolist() == [[5, 6], [5, 6]]
    assert found["one"].greedy.tolist() == [[[True, True], [False, False]]]
    assert found["two"].groups == ("g", "g")


def test_greedy_is_what_generation_writes(toy):
    """The claim behind accuracy without generating: the greedy continuation is flagged greedy, and no other of its length is."""
    prompts = ["The capital of France is", "Count the words", "She put the letter"]
    for prompt in prompts:
        batch = toy.encode([prompt])
        out = toy.hf.generate(
            input_ids=batch.input_ids, attention_mask=batch.attention_mask, max_new_tokens=3, do_sample=False, pad_token_id=0
        )
        new = out[0, batch.input_ids.shape[1] :].tolist()
        text = toy.tokenizer.decode(new)
        if toy.tokens(text) == new:
            assert score(toy, [(prompt, text)])[0].greedy
        assert not score(toy, [(prompt, " zzz 999")])[0].greedy
