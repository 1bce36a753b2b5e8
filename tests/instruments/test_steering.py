"""Steering: what is added is what was said, at the newest token of every pass; a planted direction answers with its dose, an unread one does not."""

import numpy as np
import pytest
import torch

from nullius.errors import UsageError
from nullius.instruments import steering, taps
from nullius.instruments.interventions import applied
from nullius.instruments.planted import direction
from nullius.instruments.where import Where


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2"])
def test_the_last_state_moves_by_dose_times_rms_and_no_other_does(toys, family):
    model = toys[family]
    batch = model.encode(["The capital of Poland is", "Yes it is"])
    v = torch.randn(32)
    before = taps.read(model, batch, ["resid_post"], [1], positions="all")["resid_post"][0]
    with applied(model, [steering.by_rms(Where("resid_post", 1, positions="last"), v, torch.tensor([0.5, 2.0]))]):
        after = taps.read(model, batch, ["resid_post"], [1], positions="all")["resid_post"][0]
    rms = before[:, -1].square().mean(-1).sqrt()
    wanted = before[:, -1] + torch.tensor([0.5, 2.0])[:, None] * rms[:, None] * v / v.norm()
    torch.testing.assert_close(after[:, -1], wanted, atol=1e-5, rtol=1e-4)
    assert torch.equal(after[:, :-1], before[:, :-1])


def test_every_new_token_is_steered_in_generation(toy):
    """A direction along one token's unembedding, at a large dose in the last layer, makes every new token that one."""
    token = toy.first_token(" study")
    v = toy.anatomy.unembedding()[token].detach()
    written = steering.write(toy, ["The capital", "Yes, that is"], steering.steer({2: v}, 1e4), steering.Decoding(most=4, least=4))
    assert written == [toy.tokenizer.decode([token] * 4)] * 2
    plain = steering.write(toy, ["The capital", "Yes, that is"], [], steering.Decoding(most=4, least=4))
    assert plain != written
    assert toy.generate(["The capital"], 4) == steering.write(toy, ["The capital"], [], steering.Decoding(most=4))


def test_a_planted_direction_answers_with_its_dose_and_an_unread_one_does_not():
    planted = direction.build(0)
    items = direction.remarks(np.random.default_rng(0), 12)
    prompts = [item.text for item in items]

    def good(_prompts, texts):
        return np.array([float(text.strip().startswith("good")) for text in texts])

    doses = (-0.05, 0.0, 0.05)  # the stream is 72 large, the planted code 1
    decoding = steering.Decoding(most=1)
    own = steering.dose_response(planted.model, prompts, {0: planted.tone}, doses, {"good": good}, decoding).measures["good"]
    tone = np.array([item.tone for item in items])
    assert np.array_equal(own[1], tone)
    assert own[0].mean() == 0
    assert own[2].mean() == 1
    other = steering.dose_response(planted.model, prompts, {0: planted.alive}, doses, {"good": good}, decoding).measures["good"]
    assert all(np.array_equal(row, tone) for row in other)


def test_bad_input(toy):
    with pytest.raises(UsageError, match="nothing to steer with"):
        steering.steer({}, 1.0)
    with pytest.raises(UsageError, match="a prompt and a dose"):
        steering.dose_response(toy, [], {0: torch.ones(32)}, [1.0], {}, steering.Decoding(1))
    short = {"length": lambda _prompts, said: np.array([float(len(said))])}
    with pytest.raises(UsageError, match=r"measure 'length' gives \[1\] numbers for 2 prompts"):
        steering.dose_response(toy, ["a", "b"], {0: torch.ones(32)}, [1.0], short, steering.Decoding(1))
    with pytest.raises(UsageError, match="at least 5 new tokens"):
        steering.write(toy, ["a"], [], steering.Decoding(most=2, least=5))


def test_each_text_at_its_own_dose_is_what_it_is_alone(toy):
    texts, vector = (
        ["A", "The capital of France is", "one two three four five six seven"],
        torch.randn(32, generator=torch.Generator().manual_seed(0)),
    )
    doses = torch.tensor([1.0, -2.0, 3.0])
    together = steering.write(toy, texts, steering.steer({1: vector}, doses), steering.Decoding(4))
    alone = [
        steering.write(toy, [text], steering.steer({1: vector}, float(dose)), steering.Decoding(4))[0]
        for text, dose in zip(texts, doses, strict=True)
    ]
    assert together == alone
    assert together != steering.write(toy, texts, [], steering.Decoding(4))
