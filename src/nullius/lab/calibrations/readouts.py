"""Reading out: lenses, vocabulary projections, nonlinear probes and entropy neurons where it is known what can be read, and from which layer on."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from nullius.instruments import entropy_neurons, lens, nonlinear_probes, probes, tuned_lens, vocabulary
from nullius.instruments.planted import induction, recall
from nullius.lab.calibration import Trial, case
from nullius.models.language_model import LanguageModel

ANSWERED, SHARP, WORDS = 0.5, 3.0, 500


@case(
    "logit lens",
    planted=f"a country's capital has more than {ANSWERED:.0%} of the probability after the block that remembers it, and keeps it (layers 1 and 2)",
    null="the same capital after layer 0, where only the country is there",
    modules=("lens",),
    seeds=40,
)
def capital_in_the_lens(seed: int) -> Trial:
    """Texts that name no city."""
    model, rng = recall.build(seed), np.random.default_rng(seed)
    countries = [str(name) for name in rng.choice(list(recall.CAPITALS), 6, replace=False)]
    wanted = torch.tensor([model.first_token(f" {recall.CAPITALS[name]}") for name in countries])
    said = lens.read(model, model.encode([recall.plain(name) for name in countries]), wanted).target
    assert said is not None
    hits = said > np.log(ANSWERED)
    return Trial(int(hits[1:].sum()), hits[1:].numel(), int(hits[0].sum()), len(wanted))


@case(
    "tuned lens",
    planted="a vector that the last layer adds to every state is learnt: held-out KL falls to less than a tenth of the logit lens's",
    null="the lens that was trained for another vector, in its place: KL falls by half or more",
    modules=("tuned_lens", "lens"),
    seeds=16,
)
def shift_between_layers(seed: int) -> Trial:
    """A random network of two layers, of which the last does nothing else."""
    texts = [" ".join(item.text.split()[::-1]) for item in induction.repeats(np.random.default_rng(seed), 60)]
    one, other = (_shifted(seed, shift) for shift in (0, 1))
    found, strange = (tuned_lens.fit(model, texts[:48], texts[48:], epochs=24, learning_rate=0.05, seed=seed) for model in (one, other))
    misled = tuned_lens.held_out_kl(one, texts[48:], strange.lens)
    return Trial(int(found.kl[0] < 0.1 * found.plain[0]), 1, int(misled[0] < 0.5 * found.plain[0]), 1)


def _shifted(seed: int, shift: int) -> LanguageModel:
    """Its words are those of the planted induction, and hundreds that have no name."""
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        config = GPT2Config(
            vocab_size=WORDS, n_embd=64, n_layer=2, n_head=4, n_inner=64, n_positions=16, initializer_range=0.3, tie_word_embeddings=False,
            resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, bos_token_id=0, eos_token_id=0,
        )  # fmt: skip
        hf: Any = GPT2LMHeadModel(config)
        last = hf.transformer.h[-1]
        for part in (last.attn.c_proj, last.mlp.c_proj):
            part.weight.zero_()
        torch.manual_seed(1000 * (shift + 1) + seed)
        last.mlp.c_proj.bias.copy_(3 * torch.randn(64))
    return LanguageModel.wrap(hf.eval(), induction.build(seed).tokenizer, "shifted")


@case(
    "vocabulary projections",
    planted=f"a direction made of a group's unembeddings, under half as much noise, scores above {SHARP:.0f} standard errors for that group",
    null="the three other groups, and all four for random directions",
    modules=("vocabulary",),
    seeds=40,
)
def groups_of_words(seed: int) -> Trial:
    """Random unembeddings of a network that has learnt nothing; four groups of four words."""
    model, rng = _shifted(seed, 0), np.random.default_rng(seed)
    words = rng.permutation(len(model.anatomy.unembedding()))
    groups = {f"group {i}": words[4 * i : 4 * i + 4].tolist() for i in range(4)}
    unembedding = model.anatomy.unembedding().detach()
    own = unembedding[groups["group 0"]].mean(0)
    noise = torch.tensor(rng.normal(size=(4, len(own))), dtype=own.dtype)
    directions = torch.cat([(own / own.norm() + noise[:1] / noise[:1].norm() / 2), noise[1:]])
    called = vocabulary.scores(model, directions, groups) > SHARP
    return Trial(int(called[0, 0]), 1, int(called.sum()) - int(called[0, 0]), called.numel() - 1)


@case(
    "nonlinear probes",
    planted="whether two planted signs agree, which no linear probe can read, is read off three in four unseen items or more",
    null="the same by a linear probe, and labels drawn at random by the nonlinear one, six times",
    modules=("nonlinear_probes", "probes"),
    seeds=20,
)
def agreement_of_signs(seed: int) -> Trial:
    """Twelve dimensions with noise of a third of the signs' size; half of 240 items to learn from."""
    rng = np.random.default_rng(seed)
    signs = rng.choice([-1.0, 1.0], size=(240, 2))
    states = torch.tensor(np.pad(signs, ((0, 0), (0, 10))) + 0.33 * rng.normal(size=(240, 12)), dtype=torch.float32)[None]
    rows = np.stack([signs.prod(1) > 0, *(rng.permutation(np.arange(240) % 2) for _ in range(6))]).astype(int)
    labels = torch.tensor(rows)

    def right(fit: probes.Fit) -> np.ndarray:
        found = fit(states[:, :120], labels[:, :120]).scores(states[:, 120:])[:, 0]
        return ((found > 0).long() == labels[:, 120:]).float().mean(1).numpy() >= 0.75

    bent, straight = right(nonlinear_probes.mlp(seed=seed)), right(lambda x, y: probes.logistic(x, y))
    return Trial(int(bent[0]), 1, int(bent[1:].sum()) + int(straight[0]), len(rows))


@case(
    "entropy neurons",
    planted="a neuron that writes where no word is read: more than half of its length lies there, and nine tenths of its effect on the entropy go"
    " through the final norm",
    null="all other neurons of the layer, among them one that writes as strongly for a word",
    modules=("entropy_neurons",),
    seeds=40,
)
def neuron_that_scales(seed: int) -> Trial:
    """Two neurons of the planted recall are overwritten; its unembedding reads a fifth of the dimensions."""
    model = recall.build(seed)
    mlp, out = model.hf.transformer.h[-1].mlp, model.hf.lm_head.weight
    unread = (out.abs().sum(0) == 0).nonzero()[:, 0]
    with torch.no_grad():
        mlp.c_fc.weight[:, :2], mlp.c_fc.bias[:2] = 0.0, 0.0
        mlp.c_fc.weight[recall.asked(range(0, len(recall.CAPITALS), 2)), :2] = 1.0  # both are on for every other country
        mlp.c_proj.weight[:2] = 0.0
        mlp.c_proj.weight[0, unread[-2:]] = torch.tensor([400.0, -400.0])  # dimensions beyond all slots
        mlp.c_proj.weight[1] = 2 * out[model.first_token(" Oslo")]
    texts = [recall.plain(country, name) for country in recall.CAPITALS for name in recall.NAMES[:2]]
    reading = entropy_neurons.read(model, null=len(unread) / model.anatomy.d_model)
    effect = entropy_neurons.effect(model, texts, reading.layer, range(len(reading.norm)))
    called = (reading.null_share > 0.5) & (effect.entropy > 1e-3) & (effect.through_the_norm >= 0.9)
    return Trial(int(called[0]), 1, int(called[1:].sum()), len(called) - 1)
