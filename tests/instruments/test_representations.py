"""States are those of each text alone, in the order of the texts; readings find a planted concept."""

import numpy as np
import pytest
import torch

from nullius.instruments import readings
from nullius.instruments.depth import standard_error
from nullius.instruments.representations import bag_of_tokens, last_token
from nullius.stimuli import concepts

TEXTS = ["The city of Osaka is in Japan.", "No.", "A coin is heads up. Anna turns it. Ben leaves it.", "Why?"]


@pytest.mark.parametrize("family", ["llama", "gemma3_text", "gpt2", "gpt_neox", "olmo2"])
def test_normed_site_is_the_input_of_the_mlp(toys, family):
    model = toys[family]
    together = last_token(model, TEXTS, batch_size=2)
    assert together.shape == (model.anatomy.n_layers, len(TEXTS), model.anatomy.d_model)
    seen: dict[int, torch.Tensor] = {}
    handles = [
        model.anatomy.mlp(layer).register_forward_pre_hook(lambda module, args, layer=layer: seen.update({layer: args[0][0, -1].detach()}))
        for layer in range(model.anatomy.n_layers)
    ]
    for item, text in enumerate(TEXTS):
        with torch.no_grad():
            model.hidden(model.encode([text]))
        for layer, state in seen.items():
            if family == "olmo2":  # no norm before its MLP
                state = state / state.square().mean().sqrt()
            torch.testing.assert_close(together[layer, item], state, atol=2e-4, rtol=1e-3)
    for handle in handles:
        handle.remove()


def test_bag_of_tokens_ignores_order(toy):
    bags = bag_of_tokens(toy, [" one two three", " three one two"])
    torch.testing.assert_close(bags[0, 0], bags[0, 1])
    weight = toy.hf.get_input_embeddings().weight
    ids = toy.tokens("The city")
    torch.testing.assert_close(bag_of_tokens(toy, ["The city"])[0, 0], weight[ids].mean(0).detach())


def test_reading_of_a_planted_concept(toy):
    """States in which the label is added from the second of four layers on: decodable, depth 1/4, and a planted delay adds to it."""
    rng = np.random.default_rng(0)
    concept = concepts.comparison(rng, 160)
    states = torch.randn(4, 160, 24, generator=torch.Generator().manual_seed(1))
    states[1:, :, 3] += torch.tensor(concept.labels * 12.0)
    found = readings.probe(concept, states, rng)
    assert found.decodable()
    assert found.depth.estimate == pytest.approx(0.25, abs=0.05)
    assert found.onset() == 0.25
    assert found.delayed(1).estimate == pytest.approx(0.5, abs=0.05)
    clean, noisy = found.blurred((0.0, 0.25), rng)
    np.testing.assert_array_equal(clean.probed.correct, found.probed.correct)
    assert noisy.curve.max() < 0.9
    assert all(half.depth.estimate == pytest.approx(0.25, abs=0.1) for half in found.halves(rng))
    half = found.part(concept.sample(80, rng), rng)
    assert len(half.concept) == 80
    assert half.decodable()
    best, shuffled, clusters = readings.pooled([found, half])
    assert best.mean() > 0.95
    assert abs(shuffled.mean() - 0.5) < 0.1
    assert len(clusters) == len(best) == 144


def test_matching_brings_the_more_accurate_side_down(toy):
    """One concept is read without error, the other through one label in five flipped: matching finds about that rate, on either side."""
    rng = np.random.default_rng(5)
    concept = concepts.comparison(rng, 400)
    states = torch.randn(3, 400, 8, generator=torch.Generator().manual_seed(1))
    states[:, :, 3] += torch.tensor(concept.labels * 12.0)
    clear = readings.probe(concept, states, rng)
    unclear = clear.blurred((0.2,), rng)[0]
    one, _, rate = readings.matched([unclear], [clear], rng)
    assert one[0].estimate == unclear.depth.estimate
    assert 0.15 <= rate <= 0.25
    assert readings.matched([clear], [unclear], rng)[1][0].estimate == unclear.depth.estimate
    assert readings.matched([clear], [clear], rng)[2] == 0


def test_matching_does_not_hang_on_one_draw_of_flipped_labels(toy):
    """Matched again with other draws, the depth moves by less than its standard error."""
    rng = np.random.default_rng(6)
    concept = concepts.comparison(rng, 240)
    states = torch.randn(10, 240, 8, generator=torch.Generator().manual_seed(2))
    states[5:, :, 3] += torch.tensor(concept.labels * 12.0)
    clear = readings.probe(concept, states, rng)
    unclear = clear.blurred((0.2,), rng)[0]
    depths = [readings.matched([unclear], [clear], np.random.default_rng(seed))[1][0] for seed in range(6)]
    error = np.mean([standard_error(found.samples, found.groups) for found in depths])
    assert np.std([found.estimate for found in depths]) < error
    assert np.mean([found.estimate for found in depths]) == pytest.approx(0.5, abs=0.1)


def test_null_reading_is_undecodable(toy):
    rng = np.random.default_rng(2)
    concept = concepts.comparison(rng, 160)
    found = readings.probe(concept, torch.randn(4, 160, 24, generator=torch.Generator().manual_seed(3)), rng)
    assert not found.decodable()
    assert found.onset() is None


def test_words_alone_cannot_tell_the_labels_of_the_sets_made_here(toy):
    """The sets are exclusive-ors within blocks of equal words: on average over sets a probe of the bag of tokens is near chance, and no
    weighing of words is right about more than three in four."""
    rng = np.random.default_rng(4)
    accuracy = [readings.probe(concept, bag_of_tokens(toy, concept.texts), rng).best.mean() for concept in concepts.in_package(rng, 160)]
    assert max(accuracy) <= 0.76
    assert np.mean(accuracy) < 0.6
