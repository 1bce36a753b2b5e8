"""The activation store: what it holds is what taps read; a run that was killed goes on; what does not fit is refused."""

import pytest
import torch

from nullius.errors import NulliusError, UsageError
from nullius.instruments import store, taps

TEXTS = [
    "The capital of France is",
    "A claim",
    "Every control must come out null and could fail to",
    "Nothing",
    "The doctor saw the old man",
]
SITES = ["resid_post", "z", "mlp_post"]


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2"])
@pytest.mark.parametrize("sizes", [{}, {"batch_tokens": 1, "shard_bytes": 1}, {"batch_tokens": 16, "shard_bytes": 20_000}])
def test_what_is_stored_is_what_taps_read(toys, tmp_path, family, sizes):
    model = toys[family]
    found = store.record(model, TEXTS, tmp_path, SITES, [2, 0], **sizes)
    assert found.complete
    assert found.sites == {site: [0, 2] for site in SITES}
    for site in SITES:
        for layer in (0, 2):
            whole = found.read(site, layer)
            for i, text in enumerate(TEXTS):
                batch = model.encode([text])
                alone = taps.read(model, batch, [site], [layer], positions="all")[site][0, 0]
                mine = whole.text == i
                assert torch.allclose(whole.values[mine], alone, atol=1e-4), (site, layer, text)
                assert whole.token[mine].tolist() == batch.input_ids[0].tolist()
                assert whole.position[mine].tolist() == list(range(len(alone)))
    if sizes.get("shard_bytes") == 1:
        assert len(list(tmp_path.glob("shard-*"))) == len(TEXTS)


def test_only_the_last_tokens_and_another_type(toy, tmp_path):
    found = store.record(toy, TEXTS, tmp_path, ["resid_post"], [1], positions="last", dtype=torch.bfloat16)
    whole = found.read("resid_post", 1)
    expected = taps.read(toy, toy.encode(TEXTS), ["resid_post"], [1])["resid_post"][0]
    assert whole.values.dtype == torch.bfloat16
    assert torch.allclose(whole.values.float(), expected, rtol=1e-2, atol=1e-2)
    assert whole.text.tolist() == list(range(len(TEXTS)))


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2"])
@pytest.mark.parametrize("sizes", [{}, {"batch_tokens": 12, "shard_bytes": 1}])
def test_chosen_heads_at_chosen_positions_are_what_taps_read(toys, tmp_path, family, sizes):
    """Numbers for all texts, and a list for each: against taps on each text alone, of the same heads and columns; k and v have heads of their own."""
    model = toys[family]
    heads = [1, 0] if min(model.anatomy.site(site, 0).heads for site in ("z", "k")) > 1 else [0]
    alone = [model.encode([text]) for text in TEXTS]
    lengths = [batch.input_ids.shape[1] for batch in alone]
    for number, positions in enumerate(([1, -1, 0], [[length - 1, 1] if length > 2 else [0] for length in lengths])):
        found = store.record(model, TEXTS, tmp_path / str(number), [*SITES, "k"], [2, 0], positions=positions, heads=heads, **sizes)
        assert found.heads == heads
        for site in (*SITES, "k"):
            for layer in (0, 2):
                whole = found.read(site, layer)
                for i, batch in enumerate(alone):
                    given = positions if number == 0 else positions[i]
                    columns = sorted({p % lengths[i] for p in given})
                    some = heads if model.anatomy.site(site, layer).heads else None
                    expected = taps.read(model, batch, [site], [layer], positions=columns, heads=some)[site][0, 0]
                    mine = whole.text == i
                    assert whole.position[mine].tolist() == columns
                    assert whole.token[mine].tolist() == batch.input_ids[0, columns].tolist()
                    assert whole.values[mine].shape == expected.shape
                    assert torch.allclose(whole.values[mine], expected, atol=1e-4), (site, layer, i)


def test_no_text_is_run_beyond_the_last_position_wanted(toy, tmp_path):
    before = toy.tokens_seen
    store.record(toy, [[5, 6, 7, 8, 9], [5, 6, 7, 8]], tmp_path, ["resid_post"], [1], positions=[[0, 1], [0]])
    assert toy.tokens_seen - before == 4  # two, and one with a padding


def test_planted_only_the_chosen_head_and_position_hold_what_was_put_there(toy, tmp_path):
    """A mark written into one head at one token is found by who asks for it, and by nobody who asks for another head or position."""
    texts = [[5, 6, 7, 8], [9, 6, 5]]

    def mark(z):
        z = z.clone()
        z[0, 1, 3] = 100.0
        return z

    with taps.edit(toy, "z", 1, mark):
        read = {
            (head, position): store.record(toy, texts, tmp_path / f"{head}{position}", ["z"], [1], heads=[head], positions=[position]).read(
                "z", 1
            )
            for head in (2, 3)
            for position in (1, 2)
        }
    for place, found in read.items():
        marked = (found.values == 100).all(-1)[:, 0]
        assert marked.tolist() == [place == (3, 1), False]


def test_rows_of_token_ids_are_taken_as_they_are(toy, tmp_path):
    rows = [[5, 6, 7], [8, 9]]
    whole = store.record(toy, rows, tmp_path, ["resid_pre"], [0]).read("resid_pre", 0)
    assert whole.token.tolist() == [5, 6, 7, 8, 9]


def test_killed_and_called_again_it_goes_on(toy, tmp_path, monkeypatch):
    """Dying in the middle of a shard leaves whole shards only; the second call computes what is missing and nothing else."""
    sizes = {"batch_tokens": 1, "shard_bytes": 1}
    honest, written = store.save_file, []

    def dies(tensors, path):
        if len(written) == 2:
            path.write_bytes(b"half")
            raise OSError("no space left on device")
        written.append(path)
        honest(tensors, path)

    monkeypatch.setattr(store, "save_file", dies)
    with pytest.raises(NulliusError, match=r"cannot write .*no space left on device"):
        store.record(toy, TEXTS, tmp_path, ["z"], **sizes)
    monkeypatch.setattr(store, "save_file", honest)
    half = store.Store(tmp_path)
    assert not half.complete
    assert not list(tmp_path.glob(".*partial"))
    with pytest.raises(UsageError, match="lacks 3 of 5 shards"):
        half.read("z", 0)
    before = toy.tokens_seen
    found = store.record(toy, TEXTS, tmp_path, ["z"], **sizes)
    lengths = sorted((toy.encode([text]).input_ids.shape[1] for text in TEXTS), reverse=True)
    assert toy.tokens_seen - before == sum(lengths[2:])
    whole = store.record(toy, TEXTS, tmp_path / "anew", ["z"], **sizes)
    assert toy.tokens_seen - before == sum(lengths[2:]) + sum(lengths)
    for layer in range(3):
        assert torch.equal(found.read("z", layer).values, whole.read("z", layer).values)
    before = toy.tokens_seen
    store.record(toy, TEXTS, tmp_path, ["z"], **sizes)
    assert toy.tokens_seen == before


def test_bad_input_is_one_line(toy, toys, tmp_path):
    with pytest.raises(UsageError, match="no site 'resid'"):
        store.record(toy, TEXTS, tmp_path / "a", ["resid"])
    with pytest.raises(UsageError, match="layer 3 does not exist: llama has layers 0 to 2"):
        store.record(toy, TEXTS, tmp_path / "a", ["z"], [3])
    with pytest.raises(UsageError, match="a pattern has the size of its text"):
        store.record(toy, TEXTS, tmp_path / "a", ["pattern"])
    with pytest.raises(UsageError, match="nothing to store"):
        store.record(toy, [], tmp_path / "a", ["z"])
    with pytest.raises(UsageError, match="head 4 does not exist: z of toy-llama has heads 0 to 3"):
        store.record(toy, TEXTS, tmp_path / "a", ["z"], heads=[0, 4])
    with pytest.raises(UsageError, match="no head to store"):
        store.record(toy, TEXTS, tmp_path / "a", ["z"], heads=[])
    with pytest.raises(UsageError, match=r"heads must be a list: \[1\], not 1"):
        store.record(toy, TEXTS, tmp_path / "a", ["z"], heads=1)
    with pytest.raises(UsageError, match="heads are chosen, and resid_post has none"):
        store.record(toy, TEXTS, tmp_path / "a", ["resid_post"], heads=[0])
    with pytest.raises(UsageError, match="position 2 does not exist in text 1, which has positions 0 to 1"):
        store.record(toy, [[5, 6, 7], [8, 9]], tmp_path / "a", ["z"], positions=[2])
    with pytest.raises(UsageError, match="position -3 does not exist in text 1"):
        store.record(toy, [[5, 6, 7], [8, 9]], tmp_path / "a", ["z"], positions=[[0], [-3]])
    for positions in ([], 3, [1.5], [[0]], [[0], []], [0, [1]], [["0"], [1]]):
        with pytest.raises(UsageError, match="positions must be numbers for all texts, or a list of them"):
            store.record(toy, [[5, 6, 7], [8, 9]], tmp_path / "a", ["z"], positions=positions)
    with pytest.raises(UsageError, match="no positions 'first': give numbers, or last or all"):
        store.record(toy, TEXTS, tmp_path / "a", ["z"], positions="first")
    with pytest.raises(UsageError, match="text 1 has no token"):
        store.record(toy, [[1], []], tmp_path / "a", ["z"])
    assert not (tmp_path / "a").exists()
    with pytest.raises(UsageError, match="no activation store in"):
        store.Store(tmp_path)
    found = store.record(toy, TEXTS, tmp_path / "b", ["z"], [1])
    with pytest.raises(UsageError, match=r"z of layer 0 is not in .*, which holds z of layers 1"):
        found.read("z", 0)
    with pytest.raises(UsageError, match=r"holds other activations \(another texts\)"):
        store.record(toy, TEXTS[1:], tmp_path / "b", ["z"], [1])
    for other, what in (({"heads": [1]}, "heads"), ({"positions": [0]}, "positions")):
        with pytest.raises(UsageError, match=f"another {what}"):
            store.record(toy, TEXTS, tmp_path / "b", ["z"], [1], **other)
    with pytest.raises(UsageError, match="another subject"):
        store.record(toys["gpt2"], TEXTS, tmp_path / "b", ["z"], [1])
    found.path(0).write_bytes(b"not one")
    with pytest.raises(NulliusError, match="delete it and call record again"):
        found.read("z", 1)
