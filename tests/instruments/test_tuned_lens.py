"""The tuned lens: a rotation between layers is undone; where nothing can be learnt held-out KL does not fall; gradients are those of whole logits."""

import copy

import pytest
import torch

from nullius.errors import UsageError
from nullius.instruments import lens, tuned_lens
from nullius.models.language_model import LanguageModel

WORDS = ["alpha", "river", "window", "doctor", "garden", "letter", "market", "bottle", "forest", "engine", "castle", "paper", "table"]


def texts(n, seed, length=12):
    generator = torch.Generator().manual_seed(seed)
    return [" ".join(WORDS[i] for i in torch.randint(len(WORDS), (length,), generator=generator)) for _ in range(n)]


@pytest.fixture(scope="module")
def shifted(toy):
    """A planted case: the last layer adds the same vector to every state, and nothing else."""
    hf = copy.deepcopy(toy.hf)
    torch.manual_seed(1)
    with torch.no_grad():
        for layer in (1, 2):
            hf.model.layers[layer].self_attn.o_proj.weight.zero_()
            hf.model.layers[layer].mlp.down_proj.weight.zero_()
    hf.model.layers[2].mlp.down_proj.bias = torch.nn.Parameter(2 * torch.randn(32))
    return LanguageModel.wrap(hf, toy.tokenizer, "shifted")


def test_a_planted_shift_is_learnt_and_a_layer_that_is_the_last_one_already_stays(shifted):
    fitted = tuned_lens.fit(shifted, texts(64, 0), texts(16, 1), epochs=6, learning_rate=0.05)
    assert fitted.plain[1] > 0.2
    assert fitted.kl[1] < 0.1 * fitted.plain[1]
    bias = fitted.lens.bias[1]
    truth = shifted.hf.model.layers[2].mlp.down_proj.bias.detach()
    assert torch.nn.functional.cosine_similarity(bias, truth, dim=0) > 0.7


def test_nothing_is_learnt_where_the_lens_is_right_already(toy):
    hf = copy.deepcopy(toy.hf)
    with torch.no_grad():
        for block in hf.model.layers:
            block.self_attn.o_proj.weight.zero_()
            block.mlp.down_proj.weight.zero_()
    model = LanguageModel.wrap(hf, toy.tokenizer, "still")
    fitted = tuned_lens.fit(model, texts(16, 0), texts(8, 1))
    assert fitted.plain.abs().max() < 1e-5
    assert fitted.kl.abs().max() < 1e-3


def test_training_helps_on_held_out_texts_and_leaves_the_subject_alone(toy, tmp_path):
    toy.hf.zero_grad()  # other tests share this model
    before = {name: p.detach().clone() for name, p in toy.hf.named_parameters()}
    fitted = tuned_lens.fit(toy, texts(64, 0), texts(16, 1), epochs=4, learning_rate=0.01)
    assert (fitted.kl < fitted.plain).all()
    assert all(torch.equal(p, before[name]) and p.grad is None and p.requires_grad for name, p in toy.hf.named_parameters())
    fitted.lens.save(tmp_path / "lens.safetensors")
    again = tuned_lens.TunedLens.load(tmp_path / "lens.safetensors", toy)
    torch.testing.assert_close(tuned_lens.held_out_kl(toy, texts(16, 1), again), fitted.kl)
    batch = toy.encode(texts(2, 3))
    torch.testing.assert_close(lens.read(toy, batch, translate=again).entropy[-1], lens.read(toy, batch).entropy[-1])


def test_the_streamed_gradient_is_that_of_whole_logits(toy, monkeypatch):
    monkeypatch.setattr(lens, "LOGITS_HELD", 2000 * 5)
    made = tuned_lens.TunedLens(torch.zeros(2, 32, 32, requires_grad=True), torch.zeros(2, 32, requires_grad=True), "")
    some = texts(3, 5)
    tuned_lens._step(toy, made, some)
    batch = toy.encode(some)
    _, states = lens.states_of(toy, batch, [0, 1], "all")
    matrix = torch.zeros(2, 32, 32, requires_grad=True)
    end = lens.to_logits(toy, states[-1]).detach().softmax(-1)
    loss = 0
    for i in range(2):
        said = lens.to_logits(toy, states[i] + states[i] @ matrix[i]).log_softmax(-1)
        loss = loss + (end * (end.log() - said)).sum(-1).mean()
    (whole,) = torch.autograd.grad(loss, matrix)
    torch.testing.assert_close(made.matrix.grad, whole, atol=1e-5, rtol=1e-3)


def test_bad_input(toy, toys, tmp_path):
    with pytest.raises(UsageError, match="none of them the same"):
        tuned_lens.fit(toy, texts(2, 0), texts(2, 0))
    with pytest.raises(UsageError, match="no tuned lens"):
        tuned_lens.TunedLens.load(tmp_path / "nothing", toy)
    tuned_lens.TunedLens(torch.zeros(2, 32, 32), torch.zeros(2, 32), toy.weights_sha256).save(tmp_path / "l.safetensors")
    with pytest.raises(UsageError, match="other weights"):
        tuned_lens.TunedLens.load(tmp_path / "l.safetensors", toys["qwen2"])
