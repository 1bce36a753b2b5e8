"""A judge of texts that is a local language model: which of several words best says how the writer feels, and how fluent the text is.

Judged by pointwise mutual information: log p(label | text, question) − log p(label | a text that says nothing, question), so that a model's
taste for a word does not decide. Fluency is the judge's own perplexity of the text, and how much of it repeats. The label, the perplexity and
the question share what they share:
each text is read once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from nullius.elicitation.scores import score
from nullius.models.language_model import LanguageModel

QUESTION = "\n\nThe person who wrote this feels"
NOTHING = "It is so."


@dataclass(frozen=True)
class Judged:
    """Of n texts: which label [n] fits best, by how much each rises [n, labels] in nats, perplexity [n], share of repeated word pairs [n]."""

    label: NDArray[np.int64]
    rise: NDArray[np.float64]
    perplexity: NDArray[np.float64]
    repetition: NDArray[np.float64]


def judge(model: LanguageModel, texts: Sequence[str], labels: Sequence[str]) -> Judged:
    """Judge texts. An empty text is read as NOTHING: no label rises, and its perplexity says nothing about it."""
    read = [text.strip() or NOTHING for text in texts]
    asked = [*dict.fromkeys([NOTHING, *read])]
    place = {text: i for i, text in enumerate(asked)}
    requests = [(text + QUESTION, f" {label}") for text in asked for label in labels] + [("", text) for text in asked]
    found = score(model, requests)
    table = np.array([one.total for one in found[: len(asked) * len(labels)]]).reshape(len(asked), -1)
    surprise = np.array([-np.mean(one.logprobs) for one in found[len(asked) * len(labels) :]])
    rows = [place[text] for text in read]
    rise = table[rows] - table[0]
    return Judged(rise.argmax(1), rise, np.exp(surprise[rows]), np.array([repetition(text) for text in texts]))


def repetition(text: str) -> float:
    """Share of the pairs of neighbouring words that have occurred before: 0 for a text without any."""
    words = text.lower().split()
    pairs = list(pairwise(words))
    return 1 - len(set(pairs)) / len(pairs) if pairs else 0.0


def as_chat(model: LanguageModel, system: str, message: str) -> str:
    """A system and a user message in the subject's chat template, up to where its answer begins; one message where the template has no system's."""
    from jinja2.exceptions import TemplateError

    apart = [{"role": "system", "content": system}, {"role": "user", "content": message}]
    whole = [{"role": "user", "content": f"{system}\n\n{message}"}]
    try:
        text: str = model.tokenizer.apply_chat_template(apart, tokenize=False, add_generation_prompt=True)
    except TemplateError:
        text = model.tokenizer.apply_chat_template(whole, tokenize=False, add_generation_prompt=True)
    return text
