"""The study finds the heads that were wired to carry operands and operator, and the block that adds; where nothing is there it says so."""

import numpy as np
import pytest
import torch
from tests.wired_adder import HEADS, LAYER, TABLE, TWINS, wired_adder

from nullius.instruments import heads, knockout, paths
from nullius.instruments.heads import Head
from nullius.instruments.questions import Questions, ask
from nullius.lab import runner
from nullius.lab.studies import get
from nullius.stimuli import arithmetic
from nullius.stimuli.prompts import Stimuli

RNG = np.random.default_rng(0)


@pytest.fixture(scope="module")
def adder():
    return wired_adder()


@pytest.fixture(scope="module")
def twin():
    return wired_adder(twin=True)


@pytest.fixture(scope="module")
def planted(adder, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NULLIUS_DATA", str(tmp_path_factory.mktemp("data")))
        return runner.run(get("arithmetic-heads"), adder, seed=1)


def scores(model, kind, n=24):
    """Mean effect of each head [layers, heads], by path patching at the last position."""
    items, others = arithmetic.counterfactuals(arithmetic.sums().sample(n, np.random.default_rng(1)), kind, RNG)
    base, source = ask(model, items), ask(model, others)
    answers = np.stack([base.targets, source.targets], 1).tolist()
    found = paths.patch(model, base.batch(model), source.batch(model), heads.all_heads(model), answers)
    return found.effect().mean(0).view(model.anatomy.n_layers, -1)


def accuracy(model, chosen):
    """Right answers with heads replaced by their mean over all problems."""
    asked = ask(model, arithmetic.sums())
    batch = asked.batch(model)
    mean = knockout.mean_by_position(model, batch)
    token = knockout.last_logits(model, batch, [chosen] * len(asked.targets), mean).argmax(-1).numpy()
    return float((token == asked.targets).mean())


def test_it_adds(adder, twin):
    for model in (adder, twin):
        for form in ("symbols", "words"):
            assert ask(model, arithmetic.sums(form)).right(model).mean() == 1


@pytest.mark.parametrize(("kind", "roles"), [("operands", {"first operand", "second operand"}), ("operator", {"operator"})])
def test_scores_are_there_and_nowhere_else(adder, kind, roles):
    found = scores(adder, kind)
    for role, head in HEADS.items():
        assert (found[LAYER, head] < -1) == (role in roles), role
        found[LAYER, head] = 0
    assert found.abs().max() < 0.05


def test_null_counterfactuals_that_are_none(adder):
    """The same text as its own counterfactual."""
    asked = ask(adder, arithmetic.sums().sample(10, RNG))
    batch = asked.batch(adder)
    answers = np.stack([asked.targets, np.roll(asked.targets, 1)], 1).tolist()
    found = paths.patch(adder, batch, batch, heads.all_heads(adder), answers)
    assert found.effect().abs().max() < 1e-4


def test_knocking_out_any_one_breaks_the_task(adder):
    assert accuracy(adder, []) == 1
    for head in HEADS.values():
        assert accuracy(adder, [Head(LAYER, head)]) < 0.5
    assert accuracy(adder, [Head(2, 1), Head(LAYER, 0), Head(LAYER, 2), Head(5, 3)]) == 1


def test_a_redundant_twin_hides_from_single_heads_and_not_from_the_curve(twin):
    """With a backup each head alone matters little; both of a pair together break the task."""
    for role, head in HEADS.items():
        assert accuracy(twin, [Head(LAYER, head)]) > 0.9
        assert accuracy(twin, [Head(LAYER, TWINS[role])]) > 0.9
        if role != "operator":  # of two operators the mean leaves half of each, and with doubled operands that is enough at times
            assert accuracy(twin, [Head(LAYER, head), Head(LAYER, TWINS[role])]) < 0.5


def test_the_study_finds_what_was_wired(planted):
    key = next(note for note in planted.to_dict()["notes"] if note.startswith("key heads"))
    assert set(key.removeprefix("key heads: ").split(", ")) == {f"{LAYER}.{head}" for head in HEADS.values()}
    for claim in ("few-heads-matter", "knock-out-breaks", "attend-to-problem", "transfers-to-words"):
        assert planted.verdict(claim).word == "holds", (claim, planted.verdict(claim))
    late = planted.verdict("late-mlps-compute")  # one block of three computes
    assert late.effect.estimate > 0.1
    assert late.control.lo <= 0 <= late.control.hi
    assert planted.verdict("spares-other-knowledge").word == "out of reach"  # it knows no capital
    assert planted.verdict("beats-full-tuning").word == "out of reach"
    assert planted.verdict("precise-tuning-gains").word != "holds"  # nothing is left to gain


def test_the_table_is_the_only_block_that_computes(adder):
    items, others = arithmetic.counterfactuals(arithmetic.sums().sample(20, np.random.default_rng(2)), "operands", RNG)
    base, source = ask(adder, items), ask(adder, others)
    answers = np.stack([base.targets, source.targets], 1).tolist()
    blocks = [paths.Mlp(layer) for layer in range(6)]
    effect = paths.patch(adder, base.batch(adder), source.batch(adder), blocks, answers).effect().mean(0)
    assert effect[TABLE] < -1
    effect[TABLE] = 0
    assert effect.abs().max() < 1e-3


def test_a_subject_that_cannot_add_is_out_of_reach(toy):
    record = runner.run(get("arithmetic-heads"), toy)
    assert {verdict.word for verdict in record.verdicts} == {"out of reach"}


def test_problems_and_their_counterfactuals():
    every = arithmetic.sums()
    assert len(every) == 108
    assert all(0 <= item.value <= 9 for item in every)
    for kind in ("operands", "operator"):
        items, others = arithmetic.counterfactuals(every, kind, RNG)
        for item, other in zip(items, others, strict=True):
            changed = (item.a != other.a) + (item.b != other.b) + (item.operator != other.operator)
            assert changed == 1
            assert item.value != other.value
    item = arithmetic.Sum(4, "-", 3, "words")
    assert [item.prompt[slice(*span)] for span in item.spans().values()] == ["4", "minus", "3"]
    assert item.prompt.endswith("\n4 minus 3 is")
    item = arithmetic.Sum(4, "+", 3, "question")
    assert [item.prompt[slice(*span)] for span in item.spans().values()] == ["4", "plus", "3"]
    assert len({item.group for item in (arithmetic.Sum(1, "+", 2), arithmetic.Sum(2, "+", 1))}) == 1


def test_roles_are_found_among_the_tokens(toy):
    items = Stimuli.of([arithmetic.Sum(4, "+", 3), arithmetic.Sum(8, "-", 5, "question")])
    asked = ask(toy, items)
    batch = asked.batch(toy)
    for row, item, chosen in zip(batch.input_ids, items, asked.columns(toy, [list(i.spans().values()) for i in items]), strict=True):
        text = "".join(toy.tokenizer.decode([int(row[column])]) for column in chosen)
        assert text.replace(" ", "") in (item.asked.replace(" ", "")[:3], f"{item.a}minus{item.b}")


def test_knockout_is_what_edits_by_hand_do(toy):
    from nullius.errors import UsageError
    from nullius.instruments import taps

    batch = toy.pad(torch.randint(5, 900, (3, 8), generator=torch.Generator().manual_seed(0)).tolist())
    mean = knockout.mean_by_position(toy, batch)
    sets = [[Head(0, 1), Head(2, 3)], [], [Head(0, 0)]]
    found = knockout.last_logits(toy, batch, sets, mean)

    def by_hand(layer, changes):
        def fn(z):
            z = z.clone()
            for row, head in changes:
                z[row, :, head] = mean[layer][:, head]
            return z

        return taps.edit(toy, "z", layer, fn)

    with torch.no_grad(), by_hand(0, [(0, 1), (2, 0)]), by_hand(2, [(0, 3)]):
        assert torch.allclose(found, toy.logits(batch), atol=1e-5)
    with pytest.raises(UsageError, match="2 sets of heads for 3 texts"):
        knockout.last_logits(toy, batch, [[], []], mean)
    with pytest.raises(UsageError, match=r"head 0.9 does not exist: toy-llama has 3 layers of 4 heads"):
        knockout.last_logits(toy, batch, [[Head(0, 9)], [], []], mean)


def test_falls_are_those_of_whole_passes(toy):
    """Layers below the lowest head are not run again, and nothing else changes."""
    rows = torch.randint(5, 900, (6, 8), generator=torch.Generator().manual_seed(0)).tolist()
    asked = Questions(("",) * 6, tuple(map(tuple, rows)), toy.logits(toy.pad(rows)).argmax(-1).numpy())
    batch = asked.batch(toy)
    mean = knockout.mean_by_position(toy, batch)
    sets = [[Head(1, 1), Head(2, 3)], [], [Head(2, 0)]]
    asked.targets[::2] = knockout.last_logits(toy, batch, [sets[0]] * 6, mean).argmax(-1).numpy()[::2]  # right with these heads gone
    before = asked.right(toy)
    found = knockout.falls(toy, asked, mean, sets)
    for fall, some in zip(found, sets, strict=True):
        token = knockout.last_logits(toy, batch, [some] * 6, mean).argmax(-1).numpy()
        np.testing.assert_array_equal(fall, before - (token == asked.targets))
    assert not found[1].any()
    assert found[0].any()
