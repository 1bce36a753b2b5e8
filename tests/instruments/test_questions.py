"""Questions: what all prompts begin with is run once, and nothing comes out differently; knock-outs likewise."""

import numpy as np
import pytest
import torch

from nullius.instruments import interventions, knockout, wavefront
from nullius.instruments.heads import Head
from nullius.instruments.questions import Questions
from nullius.instruments.where import Where


def asked_of(shared, rows=9, length=8):
    ids = torch.randint(5, 900, (rows, length), generator=torch.Generator().manual_seed(0))
    ids[:, :shared] = ids[0, :shared]
    return Questions(("",) * rows, tuple(map(tuple, ids.tolist())), ids[:, 0].numpy() + np.arange(rows))


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma3_text", "gpt_neox"])
def test_log_probabilities_are_those_of_whole_texts(toys, family):
    model = toys[family]
    for shared in (0, 3, 5, 8):
        asked = asked_of(shared)
        plain = model.logits(model.pad(asked.rows)).float().log_softmax(-1).detach()
        found = asked.log_probs(model, size=4)
        np.testing.assert_allclose(found, plain[torch.arange(9), torch.tensor(asked.targets)].numpy(), atol=2e-4)
        np.testing.assert_array_equal(asked.right(model, size=4), (plain.argmax(-1).numpy() == asked.targets).astype(float))


def test_what_is_shared_is_run_once_unless_hooks_are_open(toy, monkeypatch):
    """An intervention at a position that all texts share must be seen by all of them."""
    suffixes = []
    real = wavefront.run_suffix
    monkeypatch.setattr(
        wavefront, "run_suffix", lambda model, base, ids, start: suffixes.append((*ids.shape, start)) or real(model, base, ids, start)
    )
    asked = asked_of(5)
    plain = asked.log_probs(toy, size=4)
    assert suffixes[-3:] == [(4, 8, 5), (4, 8, 5), (1, 8, 5)]
    count = len(suffixes)
    with interventions.applied(toy, [interventions.scale(Where("resid_post", 0, positions=[1]), 0.0)]):
        changed = asked.log_probs(toy)
    assert len(suffixes) == count
    assert np.abs(changed - plain).max() > 1e-3


def test_knock_outs_behind_what_is_shared_are_those_of_whole_texts(toy):
    asked = asked_of(5)
    batch = asked.batch(toy)
    mean = knockout.mean_by_position(toy, batch)
    sets = [[Head(1, 1), Head(2, 3)], [], [Head(0, 0), Head(0, 1), Head(1, 2)]]
    token = [knockout.last_logits(toy, batch, [some] * 9, mean).argmax(-1).numpy() for some in sets]
    asked.targets[:] = token[0]  # right with the first heads gone
    before = token[1] == asked.targets
    for fall, said in zip(knockout.falls(toy, asked, mean, sets), token, strict=True):
        np.testing.assert_array_equal(fall, before - (said == asked.targets).astype(float))
