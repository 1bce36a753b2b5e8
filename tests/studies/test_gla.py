"""The study goes through on tiny networks; its streams ask what they say; planted and null cases of its instruments."""

import numpy as np
import pytest
import torch

from nullius.errors import UsageError
from nullius.lab import Lab, runner
from nullius.lab.studies import get
from nullius.models import architectures
from nullius.stimuli import recall
from nullius.studies.architectures import gla as module
from nullius.training import asked, crossover
from nullius.training.asked import Recipe

TINY = Recipe(3, 8, 5e-3)
SMALL = module.Plan(2, 16, 1, TINY, TINY, TINY, 12, 3)


@pytest.fixture
def gates_open(monkeypatch):
    """Networks of three steps can do nothing: let them through, so that verdicts are about their samples."""
    monkeypatch.setattr(Lab, "require", lambda *_args, **_kwargs: True)


def test_equal_networks_show_nothing(toy, monkeypatch, gates_open):
    """Null: every gate is the same gate, and equal times show no lead. Nothing may hold."""
    monkeypatch.setattr(module, "QUICK", SMALL)
    times = []
    monkeypatch.setattr(crossover, "time_layer", lambda n, repeats, device: times.append(n) or fake_timings(repeats))
    real = module._networks
    monkeypatch.setattr(module, "_networks", lambda bench, plan, where, kind, *rest: real(bench, plan, where, "gla", *rest))
    record = runner.run(get("gla"), toy)
    words = {verdict.claim.id: verdict.word for verdict in record.verdicts}
    assert set(words) == {claim.id for claim in module.CLAIMS}
    assert times == [256, 512, 1024, 2048, 4096]
    assert not [claim for claim, word in words.items() if word == "holds"]
    assert words["quality-at-scale"] == words["text-near-softmax"] == "out of reach"


def fake_timings(repeats):
    rng = np.random.default_rng(0)
    return crossover.Timings(*(1 + 0.01 * rng.random(repeats) for _ in range(3)))


def test_full_text_part_goes_through_and_takes_up_what_was_trained(toy, monkeypatch, gates_open, tmp_path):
    """Begun, cut off while text is learned, and begun again: what had been trained is not trained again, and nothing stays behind."""
    text = module.Text(tokens=128, length=32, batch=2, width=16, layers=1)
    monkeypatch.setattr(module, "FULL", module.replace(SMALL, test=4, text=text))
    monkeypatch.setattr(crossover, "time_layer", lambda n, repeats, device: fake_timings(repeats))
    monkeypatch.setenv("NULLIUS_CACHE", str(tmp_path / "cache"))
    path = tmp_path / "text.txt"
    path.write_bytes(b"the river rose in the night, and " * 400)
    real, trained = asked.fit, []

    def fit(hf, data, how, seed, show):
        trained.append(how)
        if how.bf16 and how in trained[:-1]:
            raise KeyboardInterrupt
        return real(hf, data, how, seed, show)

    monkeypatch.setattr(asked, "fit", fit)
    run: dict = {"full": True, "options": {"text": "file"}}
    with pytest.raises(UsageError, match="set NULLIUS_TEXT to a file"):
        runner.run(get("gla"), toy, **run)
    monkeypatch.setenv("NULLIUS_TEXT", str(tmp_path / "nowhere"))
    with pytest.raises(UsageError, match="which is no file"):
        runner.run(get("gla"), toy, **run)
    monkeypatch.setenv("NULLIUS_TEXT", str(path))
    with pytest.raises(KeyboardInterrupt):
        runner.run(get("gla"), toy, **run)
    assert list((tmp_path / "cache" / "trained").iterdir())
    before = len(trained)
    monkeypatch.setattr(asked, "fit", lambda *rest: trained.append(rest[2]) or real(*rest))
    record = runner.run(get("gla"), toy, **run)
    seeds = module.FULL.seeds
    assert len(trained) - before == 7 * seeds + 6 - 1  # in order seven kinds, shuffled six with one seed; one had been trained
    assert not list((tmp_path / "cache" / "trained").iterdir())
    assert record.verdict("text-near-softmax").word != "out of reach"
    assert record.verdict("gpu-parity").effect is not None


# --- streams ---


def answers(row, shape):
    """The stream's rule once more, symbol by symbol."""
    content, found = {}, []
    for symbol in row.tolist():
        rest = symbol - 1 - shape.values
        if rest < shape.slots * shape.values:
            content[rest // shape.values] = rest % shape.values + 1
            found.append(-1)
        elif rest < shape.slots * (shape.values + 1):
            found.append(content.get(rest - shape.slots * shape.values, 0))
        else:
            group = rest - shape.slots * (shape.values + 1)
            content = {slot: value for slot, value in content.items() if slot // shape.per_group != group}
            found.append(-1)
    return found


@pytest.mark.parametrize("resets", [0.0, 0.15, 0.5])
def test_until_reset_asks_what_it_says(resets):
    shape = recall.Slots(3, 2, 5)
    data = recall.until_reset(40, np.random.default_rng(0), length=60, shape=shape, resets=resets)
    assert [answers(row, shape) for row in data.tokens] == data.targets.tolist()
    assert data.tokens.max() < data.vocabulary == shape.vocabulary
    emptied = (data.tokens >= shape.reset(np.array(0))).mean()
    assert emptied == pytest.approx(resets, abs=0.03)


def test_pairs_ask_for_the_value_of_their_key():
    data = recall.pairs(30, np.random.default_rng(0), length=40, pairs=5, gaps=0.3)
    for row, wanted in zip(data.tokens.tolist(), data.targets.tolist(), strict=True):
        value = dict(zip(row[0:10:2], row[1:10:2], strict=True))
        assert wanted[:10] == [-1] * 10
        assert [value[s] if s else -1 for s in row[10:]] == wanted[10:]
        assert len(value) == 5
    other = recall.redealt(data, np.random.default_rng(1))
    assert ((other == -1) == (data.targets == -1)).all()
    assert sorted(other.flatten().tolist()) == sorted(data.targets.flatten().tolist())
    assert (other == data.targets)[other != -1].mean() == pytest.approx(1 / 8, abs=0.05)
    with pytest.raises(UsageError, match="5 pairs need a length of 15"):
        recall.pairs(2, np.random.default_rng(0), length=12, pairs=5)


def test_offset_answers_hang_on_one_symbol():
    data = recall.offset(20, np.random.default_rng(0), back=2)
    assert (data.targets[:, :2] == -1).all()
    table = {}
    for row, wanted in zip(data.tokens, data.targets, strict=True):
        for t in range(2, len(row)):
            assert table.setdefault(row[t - 2], wanted[t]) == wanted[t]
    assert len(set(table.values())) == len(table) == 16


# --- the trainer ---


def small(mixer, vocabulary, seed=0, layers=1, heads=2):
    torch.manual_seed(seed)
    shape = {
        "hidden_size": 32,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "intermediate_size": 48,
        "initializer_range": 0.15,
    }
    return architectures.create({**shape, "vocab_size": vocabulary, "mixer": mixer, "max_position_embeddings": 64})


def test_planted_a_function_of_the_symbol_is_learned_and_noise_is_not():
    rng = np.random.default_rng(0)
    data = recall.offset(600, rng, length=12, symbols=6, back=0)
    test = recall.offset(50, rng, length=12, symbols=6, back=0)
    hf = small("mlp", data.vocabulary)
    before = asked.measure(hf, test)[0].mean()
    last = asked.fit(hf, data, Recipe(60, 32, 1e-2), 0)
    loss, right = asked.measure(hf, test, batch=7)
    assert loss.shape == right.shape == (50,)
    assert right.mean() == 1.0
    assert loss.mean() < 0.1 < before
    assert last < 0.2
    noise = recall.Asked(test.tokens, 6 + rng.integers(6, size=test.targets.shape), 12)
    assert abs(asked.measure(hf, noise)[1].mean() - 1 / 6) < 0.06


def test_the_symbol_before_needs_mixing():
    rng = np.random.default_rng(0)
    data, test = (recall.offset(n, rng, length=12, symbols=6) for n in (2000, 60))
    right = {}
    for mixer in ("softmax", "random", "mlp"):
        hf = small(mixer, data.vocabulary)
        asked.fit(hf, data, Recipe(150 if mixer != "mlp" else 30, 32, 1e-2), 0)
        right[mixer] = asked.measure(hf, test)[1].mean()
    assert right["mlp"] < 0.35
    assert right["softmax"] > 0.8
    assert right["random"] > 0.8


def test_same_seed_same_weights_and_same_batches_for_all():
    data = recall.pairs(50, np.random.default_rng(0))
    weights = []
    for _ in range(2):
        hf = small("gla", data.vocabulary)
        asked.fit(hf, data, Recipe(3, 8), 7)
        weights.append(torch.cat([p.flatten() for p in hf.parameters()]))
    assert torch.equal(*weights)
    other = small("gla", data.vocabulary)
    asked.fit(other, data, Recipe(3, 8), 8)
    assert not torch.equal(weights[0], torch.cat([p.flatten() for p in other.parameters()]))


def test_estranged_gates_see_another_sequence():
    torch.manual_seed(0)
    model = small("gla", 30).double().eval()
    ids = torch.randint(0, 30, (2, 9))
    plain = model(ids, use_cache=False).logits
    architectures.estrange_gates(model)
    strange = model(ids, use_cache=False).logits
    assert not torch.allclose(plain, strange)
    changed = ids.clone()
    changed[0] = ids[0].flip(0)
    assert not torch.allclose(model(changed, use_cache=False).logits[1], strange[1])  # the second sequence feels the first
    assert torch.allclose(model(ids[[0, 0]], use_cache=False).logits[0], plain[0])  # its own twin's gates are its own


def test_the_clock_times_what_it_says():
    found = crossover.time_layer(16, 3, "cpu")
    assert all(len(x) == 3 and (x > 0).all() for x in (found.chunks, found.softmax, found.again))
