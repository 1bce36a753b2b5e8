"""Papers to be searched, and what stands for the sentence model."""

import datetime
import re

import numpy as np
import pytest

from nullius.feed.search import engine, minilm, weights

from .made import add_papers, paper


@pytest.fixture
def no_weights(monkeypatch):
    monkeypatch.setattr(weights, "here", lambda: False)


class Bag:
    """Stands for the sentence model where its weights are not needed: texts that share words are alike."""

    def encode(self, texts):
        out = np.zeros((len(texts), minilm.WIDTH), np.float32)
        for row, text in zip(out, texts, strict=True):
            for word in re.findall(r"\w+", text.lower()):
                row[sum(map(ord, word)) % minilm.WIDTH] += 1
            row[0] += 0.01
        return out / np.linalg.norm(out, axis=1, keepdims=True)


@pytest.fixture
def bag(monkeypatch):
    monkeypatch.setattr(weights, "here", lambda: True)
    monkeypatch.setattr(minilm, "load", lambda folder: Bag())


def keys(text, **how):
    return [hit.card.key for hit in engine.search(text, **how).hits]


def fill():
    day = datetime.date(2024, 3, 5)
    ada, other = {"authors": ("Ada Lovelace",), "categories": ("cs.CL",)}, {"authors": ("Kurt Gödel",), "categories": ("math.LO",)}
    byron = {"authors": ("Ada Byron",), "categories": ("cs.CL",)}
    add_papers(
        paper(1, title="Whales and attention", published=datetime.date(2024, 3, 1), days=(day,), **ada),
        paper(2, title="Whales and memory", published=datetime.date(2023, 3, 1), code="https://x.org/y", **other),
        paper(3, title="Dolphins", abstract="On whales, briefly.", published=datetime.date(2022, 3, 1), **byron),
    )
