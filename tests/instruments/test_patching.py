"""Patching sweeps: every cell equals the plain run of that cell, on every family; planted and null cases; clear refusals."""

import itertools

import pytest
import torch
from tests.conftest import FAMILIES, make_toy

from nullius.errors import NulliusError, SubjectError, UsageError
from nullius.instruments import patching, taps, wavefront
from nullius.instruments.interventions import orthonormal

BASE = ["The doctor saw the old man by the river and spoke to", "The farmer saw the old dog by the garden and spoke to"]


@pytest.fixture(params=FAMILIES)
def model(request, toys):
    return toys[request.param]


def pairs(model, first=4, length=10, n=2):
    """Random token pairs that agree before position `first`."""
    generator = torch.Generator().manual_seed(1)
    base = torch.randint(5, 1000, (n, length), generator=generator)
    source = torch.cat([base[:, :first], torch.randint(5, 1000, (n, length - first), generator=generator)], 1)
    return model.pad(base.tolist()), model.pad(source.tolist())


ANSWERS = [[11, 12], [13, 14]]


@torch.no_grad()
def cell_by_cell(model, base, source, site, column_of, basis=None):
    """The sweep as anyone would write it: one whole run per cell."""
    kept = taps.read(model, source, [site], positions="all")[site]
    blocks = column_of if isinstance(column_of, list) else None
    n_columns = {"position": base.input_ids.shape[1], "head": model.anatomy.n_heads}[column_of] if blocks is None else len(blocks)
    answers = torch.tensor(ANSWERS)
    out = torch.zeros(2, model.anatomy.n_layers, n_columns)
    for layer in range(model.anatomy.n_layers):
        for column in range(n_columns):

            def patch(x, layer=layer, column=column):
                x = x.clone()
                index = (
                    (slice(None), column) if column_of == "position" else (slice(None), slice(None), blocks[column] if blocks else column)
                )
                if basis is None:
                    x[index] = kept[layer][index]
                else:
                    onto = basis[layer] if basis.ndim == 3 else basis
                    x[index] += (kept[layer][index] - x[index]) @ onto.T @ onto
                return x

            with taps.edit(model, site, layer, patch):
                logits = model.logits(base).gather(1, answers)
            out[:, layer, column] = logits[:, 0] - logits[:, 1]
    return out


@pytest.mark.parametrize("site", ["resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out"])
def test_every_residual_cell_is_the_plain_run(model, site):
    base, source = pairs(model)
    if site == "resid_mid" and model.anatomy.parallel:
        with pytest.raises(SubjectError, match="no resid_mid"):
            patching.residual(model, base, source, ANSWERS, site=site)
        return
    sweep = patching.residual(model, base, source, ANSWERS, site=site)
    assert torch.allclose(sweep.values, cell_by_cell(model, base, source, site, "position"), atol=1e-4)
    assert sweep.checked == 8


def test_noising_is_denoising_with_the_texts_exchanged(toy):
    good, bad = pairs(toy)
    for base, source in ((good, bad), (bad, good)):
        sweep = patching.residual(toy, base, source, ANSWERS)
        assert torch.allclose(sweep.values, cell_by_cell(toy, base, source, "resid_pre", "position"), atol=1e-4)


def test_no_layer_below_a_patch_no_position_before_it_and_no_word_that_is_not_asked_for(toy):
    base, source = pairs(toy, first=4, length=10)
    layers, through, projected = toy.anatomy.n_layers, [], []

    def count(_module, args, kwargs):
        through.append((args[0] if args else kwargs["hidden_states"]).shape[:2].numel())

    handles = [layer.register_forward_pre_hook(count, with_kwargs=True) for layer in toy.anatomy.layers]
    handles.append(toy.anatomy.unembed.register_forward_pre_hook(lambda _module, args: projected.append(args[0].shape[:-1].numel())))
    patching.residual(toy, base, source, ANSWERS, checks=0)
    for handle in handles:
        handle.remove()
    patched = 2 * sum((layers - layer) * 6 * 6 for layer in range(layers))  # texts × (layers above × positions × columns) that differ
    assert patched <= sum(through) <= patched + 2 * (2 * 10) * layers  # and at most two whole runs of the two texts
    assert sum(projected) <= 2  # the rest reads the words of the answers alone


def test_every_head_cell_is_the_plain_run(model):
    base, source = pairs(model)
    sweep = patching.heads(model, base, source, ANSWERS)
    assert torch.allclose(sweep.values, cell_by_cell(model, base, source, "z", "head"), atol=1e-4)


def test_every_neuron_block_is_the_plain_run(model):
    base, source = pairs(model)
    sweep = patching.neurons(model, base, source, ANSWERS, blocks=5)
    edges = [round(i * model.anatomy.d_mlp / 5) for i in range(6)]
    blocks = [slice(a, b) for a, b in itertools.pairwise(edges)]
    assert torch.allclose(sweep.values, cell_by_cell(model, base, source, "mlp_post", blocks), atol=1e-4)


def test_a_subspace_is_the_plain_run(model):
    """One for all layers, and one for each."""
    base, source = pairs(model)
    torch.manual_seed(0)
    each = torch.stack([orthonormal(torch.randn(3, model.anatomy.d_model)) for _ in range(model.anatomy.n_layers)])
    for basis, site in ((each[0], "resid_pre"), (each, "resid_post"), (each[1], "attn_out")):
        sweep = patching.residual(model, base, source, ANSWERS, site=site, basis=basis)
        assert torch.allclose(sweep.values, cell_by_cell(model, base, source, site, "position", basis), atol=1e-4)


def test_whole_space_and_no_space(toy):
    base, source = pairs(toy)
    plain = patching.residual(toy, base, source, ANSWERS).values
    everything = patching.residual(toy, base, source, ANSWERS, basis=torch.eye(32)).values
    assert torch.allclose(everything, plain, atol=1e-4)
    with pytest.raises(UsageError, match=r"basis must be \[k, 32\] or \[3, k, 32\]"):
        patching.residual(toy, base, source, ANSWERS, basis=torch.eye(31))
    with pytest.raises(UsageError, match="not orthonormal"):
        patching.residual(toy, base, source, ANSWERS, basis=torch.ones(2, 32))
    with pytest.raises(UsageError, match="no residual sweep over 'z'"):
        patching.residual(toy, base, source, ANSWERS, site="z")
    with pytest.raises(UsageError, match="64 neurons cannot be cut into 65 blocks"):
        patching.neurons(toy, base, source, ANSWERS, blocks=65)


@pytest.mark.parametrize("first", [0, 9])
def test_first_and_last_position(toy, first):
    base, source = pairs(toy, first=first)
    sweep = patching.residual(toy, base, source, ANSWERS)
    assert torch.allclose(sweep.values, cell_by_cell(toy, base, source, "resid_pre", "position"), atol=1e-4)


@pytest.mark.parametrize("max_tokens", [1, 7, 25, 4096])
def test_the_size_of_a_pass_does_not_matter(toy, max_tokens):
    base, source = pairs(toy)
    small = patching.heads(toy, base, source, ANSWERS, max_tokens=max_tokens)
    assert torch.allclose(small.values, patching.heads(toy, base, source, ANSWERS).values, atol=1e-5)
    small = patching.residual(toy, base, source, ANSWERS, max_tokens=max_tokens)
    assert torch.allclose(small.values, patching.residual(toy, base, source, ANSWERS).values, atol=1e-5)


def test_a_window_shorter_than_the_text(tokenizer):
    """Layers that look back over three tokens only."""
    from transformers import AutoConfig, AutoModelForCausalLM

    from nullius.models.language_model import LanguageModel

    config = AutoConfig.for_model("gemma3_text", **{**FAMILIES["gemma3_text"], "sliding_window": 3, "num_hidden_layers": 7})
    torch.manual_seed(0)
    model = LanguageModel.wrap(AutoModelForCausalLM.from_config(config), tokenizer)
    base, source = pairs(model)
    sweep = patching.residual(model, base, source, ANSWERS)
    assert torch.allclose(sweep.values, cell_by_cell(model, base, source, "resid_pre", "position"), atol=1e-4)


def test_planted_one_block_of_neurons_carries_everything(tokenizer):
    """Of a model whose heads are silent but for one that copies, and of whose neurons only some write, the sweep must find those."""
    model = make_toy("llama", tokenizer)
    with torch.no_grad():
        for layer in range(model.anatomy.n_layers):
            weight = model.anatomy.down_proj(layer).weight
            keep = weight[:, 16:32].clone() if layer == 1 else None
            weight.zero_()
            if keep is not None:
                weight[:, 16:32] = keep
            if layer > 0:
                model.anatomy.o_proj(layer).weight.zero_()
    base, source = pairs(model)
    base.input_ids[:, -1] = source.input_ids[:, -1]
    restored = patching.neurons(model, base, source, ANSWERS, blocks=4).restored()
    assert restored[1, 1].abs() > 0.01
    others = restored.clone()
    others[1, 1] = 0
    assert others.abs().max() < 1e-4


def test_a_sweep_that_disagrees_with_plain_runs_says_so(toy, monkeypatch):
    """A wavefront that is off by a little in every row is caught by the cells that are run the plain way."""
    honest = wavefront.climb
    monkeypatch.setattr(wavefront, "climb", lambda *args: {start: rows + 0.1 for start, rows in honest(*args).items()})
    base, source = pairs(toy)
    for sweep in (patching.residual, patching.heads, patching.neurons):
        with pytest.raises(NulliusError, match="disagrees with plain runs"):
            sweep(toy, base, source, ANSWERS)


def test_planted_one_head_carries_everything(tokenizer):
    """Of a model whose only writing head is 1.2, and whose feed-forward blocks are silent, the sweep must find that head and no other."""
    model = make_toy("llama", tokenizer)
    with torch.no_grad():
        for layer in range(model.anatomy.n_layers):
            model.anatomy.down_proj(layer).weight.zero_()
            for head in range(model.anatomy.n_heads):
                if (layer, head) != (1, 2):
                    width = model.anatomy.d_head
                    model.anatomy.o_proj(layer).weight[:, head * width : (head + 1) * width].zero_()
    base, source = pairs(model)
    base.input_ids[:, -1] = source.input_ids[:, -1]  # what is asked at the end is the same: the difference must be fetched
    restored = patching.heads(model, base, source, ANSWERS).restored()
    expected = torch.zeros_like(restored)
    expected[1, 2] = 1.0
    assert torch.allclose(restored, expected, atol=1e-3)
    only_last = patching.residual(model, *pairs(model, first=9), ANSWERS).restored()
    assert torch.allclose(only_last[0, -1], torch.tensor(1.0), atol=1e-3)


def test_null_equal_texts_have_nothing_to_trace(toy):
    base, _ = pairs(toy)
    for sweep in (patching.residual(toy, base, base, ANSWERS), patching.heads(toy, base, base, ANSWERS)):
        assert torch.equal(sweep.values, sweep.base[:, None, None].expand_as(sweep.values))
        with pytest.raises(UsageError, match="no difference to trace"):
            sweep.restored()


def test_the_model_is_left_as_it_was(toy):
    base, source = pairs(toy)
    before = toy.logits(base)
    patching.heads(toy, base, source, ANSWERS)
    assert torch.equal(toy.logits(base), before)


def test_pairs_of_unequal_length_are_shown_side_by_side(toy):
    with pytest.raises(UsageError, match=r"(?s)pair 1 .*base .*source "):
        patching.residual(toy, BASE, [BASE[0], BASE[1] + " them"], ANSWERS)


def test_answers_must_fit(toy):
    base, source = pairs(toy)
    with pytest.raises(UsageError, match=r"token ids \[2, k\]"):
        patching.heads(toy, base, source, [[1, 2]])
