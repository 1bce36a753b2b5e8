"""A judge of texts that is a local language model: which of several words best says how the writer feels, and how fluent the text is.

Judged by pointwise mutual information: log p(label | text, question) − log p(label | a text that says nothing, question), so that a model's
taste for a word does not decide. Each text is read once. Fluency is a model's perplexity of the text, and how much of it repeats.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from nullius.elicitation.likeness import Likeness
from nullius.elicitation.scores import score
from nullius.models import loading
from nullius.models.language_model import LanguageModel

QUESTION = "\n\nThe person who wrote this feels"
NOTHING = "It is so."


@dataclass(frozen=True)
class Judged:
    """Of n texts: which label [n] fits best, and by how much each rises [n, labels] in nats."""

    label: NDArray[np.int64]
    rise: NDArray[np.float64]


def judge(model: LanguageModel, texts: Sequence[str], labels: Sequence[str]) -> Judged:
    """Judge texts. An empty text is read as NOTHING: no label rises."""
    read, asked = _once(texts)
    found = score(model, [(text + QUESTION, f" {label}") for text in asked for label in labels])
    table = np.array([one.total for one in found]).reshape(len(asked), -1)
    rise = table[[asked[text] for text in read]] - table[0]
    return Judged(rise.argmax(1), rise)


def named(
    name: str, subject: LanguageModel, examples: Sequence[str], truth: Sequence[int], labels: Sequence[str]
) -> tuple[NDArray[np.bool_], Callable[[Sequence[str]], NDArray[np.int64]]]:
    """Return whether each example is told right by a judge [n], and the judge itself, a function from texts to numbers of labels.

    name: "minilm" (`likeness`, made of the examples, each of which it tells by the others), "self" (the subject), or another local model.
    """
    if name == "minilm":
        alike = Likeness.of(examples, truth)
        return alike.left_out() == np.array(truth), alike.judge
    model = subject if name == "self" else loading.load(name)

    def label(texts: Sequence[str]) -> NDArray[np.int64]:
        return judge(model, texts, labels).label

    return label(examples) == np.array(truth), label


def perplexity(model: LanguageModel, texts: Sequence[str]) -> NDArray[np.float64]:
    """Perplexity of each text to a model [n]. Of an empty text it says nothing (it is that of NOTHING)."""
    read, asked = _once(texts)
    surprise = np.array([-np.mean(one.logprobs) for one in score(model, [("", text) for text in asked])])
    return np.exp(surprise[[asked[text] for text in read]])


def _once(texts: Sequence[str]) -> tuple[list[str], dict[str, int]]:
    """What is read of each text, and the number of each different one, NOTHING first."""
    read = [text.strip() or NOTHING for text in texts]
    return read, {text: i for i, text in enumerate(dict.fromkeys([NOTHING, *read]))}


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
