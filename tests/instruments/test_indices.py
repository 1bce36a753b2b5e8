"""Numbers as people write them are taken for what they are; a mask, a fraction or a single number is not taken for something else."""

import copy

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from nullius.errors import SubjectError, UsageError
from nullius.instruments import attention, indices, store, taps
from nullius.instruments import interventions as iv
from nullius.instruments.heads import Head
from nullius.instruments.where import Where
from nullius.models.language_model import Batch, LanguageModel

TEXTS = ["The capital of France is", "A claim about it"]
ZERO = torch.zeros(32)


@given(st.lists(st.integers(-9, 9)))
def test_lists_of_all_kinds_are_the_same_numbers(numbers):
    kinds = (numbers, tuple(numbers), np.array(numbers, dtype=np.int64), torch.tensor(numbers, dtype=torch.int32))
    assert all(indices.listed("heads", kind) == numbers for kind in kinds)
    assert all(indices.columns(kind).tolist() == numbers for kind in kinds)
    assert indices.listed("heads", range(3)) == indices.columns(range(3)).tolist() == [0, 1, 2]


@given(st.lists(st.one_of(st.booleans(), st.floats(allow_nan=False)), min_size=1))
def test_masks_and_fractions_are_refused(numbers):
    for kind in (numbers, np.array(numbers), torch.tensor(numbers)):
        with pytest.raises(UsageError):
            indices.listed("heads", kind)
        with pytest.raises(UsageError):
            indices.columns(kind)


def change(**where):
    return lambda model, batch: _run(model, batch, iv.set_to(Where("resid_pre", 1, **where), ZERO))


def _run(model, batch, *interventions):
    with iv.applied(model, list(interventions)):
        model.logits(batch)


BAD = {
    "a mask of columns": (change(positions=torch.ones(2, 9, dtype=torch.bool)), "positions must be whole numbers, not a mask"),
    "fractions of a column": (change(positions=[-1.5]), "positions must be whole numbers, not fractions"),
    "ragged columns": (change(positions=[[-1], [-1, -2]]), "as many for each row"),
    "a column twice": (change(positions=[[-1, -2], [-3, -3]]), r"a position at resid_pre of layer 1 is named twice in row 1: \[6, 6\]"),
    "a column by two names": (change(positions=[8, -1]), r"named twice in row 0: \[8, 8\]"),
    "a mask of rows": (change(rows=[True, False]), "rows must be numbers, not a mask"),
    "one row in no list": (change(rows=1), r"rows must be a list: \[1\], not 1"),
    "a mask of units": (change(units=torch.arange(32) > 30), "units must be numbers, not a mask"),
    "a layer by name": (lambda m, b: _run(m, b, iv.set_to(Where("z", "1"), 0.0)), "a layer is a whole number, not '1'"),
    "an intervention in no list": (lambda m, b: iv.applied(m, iv.scale(Where("z", 1), 0.0)).__enter__(), "interventions stand in a list"),
    "a place for an intervention": (lambda m, b: iv.applied(m, [Where("z", 1)]).__enter__(), "interventions stand in a list"),
    "a value of words": (lambda m, b: iv.set_to(Where("resid_pre", 1), ["a"]), "value must be a tensor, or numbers"),
    "a direction of no length": (lambda m, b: iv.project_out(Where("resid_pre", 1), ZERO), "1 directions do not span 1 dimensions"),
    "from as many rows as there are not": (
        lambda m, b: _run(m, b, iv.interchange(Where("z", 1, positions=[-1]), torch.zeros(2, 4, 4, 8), torch.tensor([[0], [1], [2]]))),
        "from_positions at z of layer 1 has 3 rows; this batch asks for 2",
    ),
    "columns to read": (lambda m, b: taps.read(m, b, ["z"], positions=b.attention_mask.bool()), "not a mask"),
    "ragged columns to read": (lambda m, b: taps.read(m, b, ["z"], positions=[[-1], [-1, -2]]), "as many for each row"),
    "a head to read": (lambda m, b: taps.read(m, b, ["z"], heads=1), r"heads must be a list: \[1\], not 1"),
    "heads of what has none": (lambda m, b: taps.read(m, b, ["resid_pre", "logits"], heads=[1]), "resid_pre, logits has none"),
    "nothing to read": (lambda m, b: taps.read(m, b, []), "no site to read"),
    "a mean of nothing": (lambda m, b: iv.means(m, [], "z"), "a mean wants a text"),
    "a mean of patterns": (lambda m, b: iv.means(m, TEXTS, "pattern"), "has no mean over tokens"),
    "a mean of letters": (lambda m, b: iv.means(m, TEXTS[0], "z"), r"one text stands in a list: \['The capital of Franc'\]"),
    "letters to write on": (lambda m, b: iv.generate(m, TEXTS[0], [], 2), "one text stands in a list"),
    "letters to store": (lambda m, b: store.record(m, TEXTS[0], "nowhere", ["z"]), "one text stands in a list"),
    "a mask to store": (
        lambda m, b: store.record(m, TEXTS, "nowhere", ["z"], positions=[True, False]),
        "positions must be numbers for all texts",
    ),
    "an id outside the vocabulary": (
        lambda m, b: store.record(m, [[1], [5, 5000]], "nowhere", ["z"]),
        "5000 in text 1 is no token of toy-llama",
    ),
    "an id below it": (lambda m, b: store.record(m, [[-1, 3]], "nowhere", ["z"]), "-1 in text 0 is no token"),
    "an id between two": (lambda m, b: store.record(m, [[1.5]], "nowhere", ["z"]), "token ids must be whole numbers"),
    "a batch to store": (lambda m, b: store.record(m, b, "nowhere", ["z"]), "not a batch that is padded"),
    "whole numbers to store in": (lambda m, b: store.record(m, TEXTS, "nowhere", ["z"], dtype=torch.int8), "not in torch.int8"),
    "columns of too few texts": (lambda m, b: attention.mass(m, b, [Head(0, 0)], [[0]]), "1 lists of columns for 2 texts"),
    "columns behind the end": (lambda m, b: attention.mass(m, b, [Head(0, 0)], [[0], [9]]), "column 9 does not exist: .* 0 to 8"),
    "padding on the right": (
        lambda m, b: taps.read(m, Batch(b.input_ids, b.attention_mask.flip(1)), ["z"]),
        "text 1 of the batch is padded on the right",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_one_line(toy, name):
    run, message = BAD[name]
    with pytest.raises(UsageError, match=message) as found:
        run(toy, toy.encode(TEXTS))
    assert "\n" not in str(found.value)


def test_arrays_and_lists_do_what_tensors_do(toy):
    batch, basis = toy.encode(TEXTS), np.eye(32, dtype=np.float32)[:2]
    with torch.no_grad():
        for mine, plain in (
            (
                iv.set_to(Where("resid_pre", 1, positions=np.array([-1])), [1.0] * 32),
                iv.set_to(Where("resid_pre", 1, positions=[-1]), ZERO + 1),
            ),
            (iv.scale(Where("z", 1), [0.0, 2.0]), iv.scale(Where("z", 1), torch.tensor([0.0, 2.0]))),
            (iv.scale(Where("resid_pre", 1, basis=basis), 0.0), iv.scale(Where("resid_pre", 1, units=[0, 1]), 0.0)),
        ):
            with iv.applied(toy, [mine]):
                found = toy.logits(batch)
            with iv.applied(toy, [plain]):
                assert torch.allclose(found, toy.logits(batch), atol=1e-5)
    wanted = taps.read(toy, batch, ["z"], [0, 2], heads=[1])["z"]
    assert torch.equal(taps.read(toy, batch, ["z"], np.array([0, 2]), heads=torch.tensor([1]))["z"], wanted)


def test_layers_that_are_compiled_are_refused(toys):
    """Compiled code sees no hook that is opened later: what is read would not come, and what is changed would stay as it was."""
    model = LanguageModel.wrap(copy.deepcopy(toys["llama"].hf), toys["llama"].tokenizer, "compiled")
    batch = model.encode(TEXTS)
    model.anatomy.layers[1].compile(backend="eager")
    for run in (
        lambda: taps.read(model, batch, ["z"]),
        lambda: _run(model, batch, iv.scale(Where("mlp_post", 1), 0.0)),
        lambda: taps.read(model, batch, ["pattern"], [1]),
        lambda: store.record(model, TEXTS, "nowhere", ["z"]),
    ):
        with pytest.raises(SubjectError, match="are compiled"):
            run()
