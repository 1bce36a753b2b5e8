"""A text of the user's own: read whole or in part, cut into tokens, refused with file and line; networks kept while a study runs."""

import lzma

import numpy as np
import pytest
import torch
from torch import nn

from nullius.errors import UsageError
from nullius.training import own_text, resuming


@pytest.mark.parametrize("name", ["text.txt", "text.txt.xz"])
def test_a_text_is_read_whole_or_in_part(tmp_path, monkeypatch, name):
    path, text = tmp_path / name, "One line.\nÜnïcode, another.\n" * 50
    path.write_bytes(lzma.compress(text.encode()) if name.endswith("xz") else text.encode())
    monkeypatch.setenv(own_text.VARIABLE, str(path))
    found = own_text.read()
    assert found.name == name
    assert found.text.strip() == text.strip()
    assert own_text.read(12).text == text[:12]
    assert own_text.read(12).sha256 != found.sha256
    ids, entries = own_text.tokens(found.text, 300)
    assert ids.max() < entries <= 300
    bpe = own_text.byte_pairs(found.text.split("\n"), 300)
    assert bpe.get_vocab_size() == entries
    assert len(ids) == sum(len(each.ids) for each in bpe.encode_batch([line for line in found.text.split("\n") if line.strip()]))


def test_what_is_no_text(tmp_path, monkeypatch):
    monkeypatch.delenv(own_text.VARIABLE, raising=False)
    with pytest.raises(UsageError, match="set NULLIUS_TEXT to a file"):
        own_text.read()
    path = tmp_path / "text.txt"
    monkeypatch.setenv(own_text.VARIABLE, str(path))
    for content, words in ((None, "which is no file"), (b"", "is empty"), (b"good\nbad \xff\n", "line 2: not UTF-8")):
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(UsageError, match=words):
            own_text.read()


def test_networks_are_kept_until_the_study_has_ended(tmp_path, monkeypatch):
    monkeypatch.setenv("NULLIUS_CACHE", str(tmp_path))
    trained = []

    def run(facts, fail=False, wanted=True):
        net = nn.Linear(2, 2)

        def train():
            trained.append(facts)
            with torch.no_grad():
                net.weight.fill_(3.0)
            return {"curve": np.arange(3.0)}

        with resuming.keeping("study", facts, wanted) as kept:
            beside = kept.train(net, "a net", train)
            assert beside["curve"].tolist() == [0, 1, 2]
            assert net.weight[0, 0] == 3.0
            if fail:
                raise KeyboardInterrupt
        return kept.found

    with pytest.raises(KeyboardInterrupt):
        run([1], fail=True)
    assert run([2]) == 0  # another plan finds nothing
    assert run([1]) == 1
    assert len(trained) == 2
    assert run([1]) == 0  # it had ended: nothing stays
    assert run([1], wanted=False) == 0
    with pytest.raises(KeyboardInterrupt):
        run([1], fail=True)
    next((tmp_path / "trained").rglob("*.safetensors")).write_bytes(b"half")
    assert run([1]) == 0  # a damaged file is trained anew
    assert not list((tmp_path / "trained").iterdir())
