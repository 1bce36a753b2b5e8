"""Activations on disk: each token of a planted induction carries the word before it, so that rows that are mixed up would show."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch

from nullius.instruments import store
from nullius.instruments.planted import induction
from nullius.lab.calibration import Trial, case

TEXTS, TOKENS, SHARD = 12, 24, 5_000  # texts; tokens in a pass; bytes in a shard


@case(
    "activation store",
    planted="the word before each token, in its state after layer 0 and in the output of head 0.1 at positions drawn for each text; texts of unequal"
    " length in several shards, one of them lost and made anew. Its entry is above one half",
    null="the fifteen other words there; all words before layer 0, and at the two tokens that no word stands before",
    modules=("store",),
    seeds=20,
)
def words_before(seed: int) -> Trial:
    """Which text and which position a row is of is what the store says; which word stands before it, what the text says."""
    model, rng = induction.build(seed), np.random.default_rng(seed)
    words = len(induction.WORDS)
    rows = [rng.permutation(words)[: int(rng.integers(3, induction.LENGTH + 1))].tolist() for _ in range(TEXTS)]
    texts = [" ".join(induction.WORDS[word] for word in row) for row in rows]
    drawn = [rng.permutation(len(row) + 1)[:2].tolist() for row in rows]  # the first token is that of no word

    def count(shard: store.Shard, called: torch.Tensor, asked: int) -> Trial:
        """What was called [tokens, words] against the texts; asked: how many words should be there."""
        true = torch.zeros_like(called)
        for i, (text, position) in enumerate(zip(shard.text.tolist(), shard.position.tolist(), strict=True)):
            if asked and position >= 2:
                true[i, rows[text][position - 2]] = True
        return Trial(int((called & true).sum()), asked, int((called & ~true).sum()), int((~true).sum()))

    with TemporaryDirectory() as folder:
        for again in (False, True):
            found = store.record(
                model, texts, Path(folder) / "states", ["resid_pre", "resid_post"], [0], batch_tokens=TOKENS, shard_bytes=SHARD
            )
            if not again:
                found.path(int(rng.integers(len(found.plan)))).unlink()
        total, before = Trial(0, 0, 0, 0), slice(words, 2 * words)  # behind the slot "word"
        for site, asked in (("resid_pre", 0), ("resid_post", sum(len(row) - 1 for row in rows))):
            shard = found.read(site, 0)
            total += count(shard, shard.values[:, before] > 0.5, asked)
        shard = store.record(
            model, texts, Path(folder) / "head", ["z"], [0], positions=drawn, heads=[induction.PREVIOUS.head], batch_tokens=TOKENS
        ).read("z", 0)
        return total + count(shard, shard.values[:, 0, :words] > 0.5, sum(position >= 2 for some in drawn for position in some))
