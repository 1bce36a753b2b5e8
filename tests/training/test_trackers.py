"""Trackers: trained as planned, kept and found again; the same plan gives the same weights."""

import json

import numpy as np
import pytest
import torch

from nullius.errors import NulliusError
from nullius.paths import cache_dir
from nullius.stimuli import boxes
from nullius.training import trackers
from nullius.training.trackers import Plan

SMALL = Plan(boxes=3, objects=8, labels=6, every=10, good=0.9)  # learns from its first start


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NULLIUS_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


def test_trained_kept_and_found_again(folder):
    seen = []
    made = trackers.load(SMALL, on_step=lambda name, done, steps: seen.append(name))
    assert set(seen) == {"base", "tuned", "stranger"}
    assert made.accuracy["tuned"] >= 0.9 <= made.accuracy["stranger"]
    assert made.accuracy["base"] < made.accuracy["tuned"]
    again = trackers.load(SMALL, on_step=lambda *_: pytest.fail("trained again"))
    assert again.tuned.weights_sha256 == made.tuned.weights_sha256 != made.base.weights_sha256
    assert again.accuracy == made.accuracy
    told = json.loads((cache_dir() / "trackers" / SMALL.digest / "trackers.json").read_text("utf-8"))
    assert told["plan"]["boxes"] == 3
    objects, labels = SMALL.words
    items = boxes.draw(np.random.default_rng(5), 200, 3, objects=objects, labels=labels, style="short")
    assert trackers.accuracy(made.tuned, items).mean() > 0.8
    assert trackers.accuracy(made.base, items).mean() < trackers.accuracy(made.tuned, items).mean()


def test_a_plan_names_what_it_makes():
    assert Plan().digest == Plan().digest != Plan(seed=1).digest


def test_fresh_networks_look_back(folder):
    """Head h of the first layer begins by attending h + 1 tokens back."""
    tokens = trackers.tokenizer(SMALL)
    hf = trackers.fresh(SMALL, len(tokens), 0)
    hf.set_attn_implementation("eager")
    pattern = hf(input_ids=torch.arange(12)[None], output_attentions=True).attentions[0][0]
    assert [int(pattern[head, 11].argmax()) for head in range(4)] == [10, 9, 8, 7]


def test_one_that_does_not_learn_says_so():
    with pytest.raises(NulliusError, match="no start of 1 began to learn"):
        trackers.train(Plan(starts=1, patience=5, steps=10))
