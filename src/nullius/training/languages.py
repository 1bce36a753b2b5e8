"""Networks that learn a language and its deformations, and what they make of held-out sentences: curves, markers, constituents."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nullius.errors import UsageError
from nullius.models.language_model import LanguageModel
from nullius.stimuli import agreement, perturbations, sentence_files
from nullius.stimuli.agreement import Sentence
from nullius.stimuli.perturbations import LANGUAGES, Perturbed
from nullius.training import own_text, sentences
from nullius.training.own_text import OwnText
from nullius.training.resuming import Kept
from nullius.training.sentences import Size

Floats = NDArray[np.float64]
Show = Callable[[str, int, int], None]  # what is learned, steps done, of how many


@dataclass(frozen=True)
class Lessons:
    """How networks learn: sentences to train and to test on, steps, sentences' rows in a batch, rate, size, how many networks of each language."""

    train: int
    test: int
    steps: int
    batch: int
    rate: float
    size: Size
    seeds: int = 1


@dataclass
class Learner:
    """Networks (one for each seed) that learned one language, and the held-out sentences in it. curves: nats per token of each network
    [checkpoints, sentences]. starts: the networks before training."""

    language: str
    test: list[Perturbed]
    models: list[LanguageModel] = field(default_factory=list)
    starts: list[LanguageModel] = field(default_factory=list)
    curves: list[Floats] = field(default_factory=list)

    @property
    def final(self) -> Floats:
        """Nats per token of each sentence at the end, one network after the other [seeds · sentences]."""
        return np.concatenate([curve[-1] for curve in self.curves])

    @property
    def area(self) -> Floats:
        """Mean over the checkpoints [seeds · sentences]."""
        return np.concatenate([curve.mean(0) for curve in self.curves])


@dataclass(frozen=True)
class School:
    """A corpus, and how networks learn the languages made of it. words: every token, markers included. store: where networks are kept meanwhile."""

    lessons: Lessons
    words: list[str]
    train: list[Sentence]
    test: list[Sentence]
    seed: int
    device: torch.device
    show: Show
    store: Kept = field(default_factory=Kept)

    @property
    def checkpoints(self) -> tuple[int, ...]:
        """Steps at which the held-out sentences are read: a sixteenth of all, an eighth, and so on, and the end."""
        return tuple(sorted({max(1, self.lessons.steps * part // 16) for part in (1, 2, 4, 8, 16)}))

    @property
    def tokens(self) -> Floats:
        """Tokens of each held-out sentence in the unperturbed language, its end included: what nats are divided by in every language."""
        return np.array([len(s.words) + 1.0 for s in self.test])

    def independent(self) -> School:
        """The school of a corpus in which order carries nothing: lengths stay, words are drawn by their frequency, each for itself."""
        rng = np.random.default_rng([self.seed, 1])
        pool = np.array([word for s in self.train for word in s.words])

        def drawn(s: Sentence) -> Sentence:
            return Sentence(tuple(rng.choice(pool, len(s.words)).tolist()), s.subject, s.verb, s.plural, False, (), s.nats)

        train, test = ([drawn(s) for s in part] for part in (self.train, self.test))
        return replace(self, train=train, test=test)

    def learn(self, language: str, *, other: int = 0, positions: bool = True, rename: bool = False, label: str = "") -> Learner:
        """Let a network for each seed learn a language. other: another seed of the networks. positions: see `sentences.fresh`. rename: permute all
        words first, which makes another language of the same difficulty. Raises UsageError when a held-out sentence has no room for a marker."""
        perturb, lessons = LANGUAGES[language].perturb, self.lessons
        drawn = not LANGUAGES[language].reversible or LANGUAGES[language].family == "reverse"  # else it is a rule, and draws nothing
        nothing = perturbations.generator(0, 0)
        deformed = [perturb(s, perturbations.generator(self.seed + 1, i) if drawn else nothing) for i, s in enumerate(self.train)]
        held_out = [p for i, s in enumerate(self.test) if (p := perturb(s, perturbations.generator(self.seed + 2, i)))]
        if len(held_out) != len(self.test):
            raise UsageError(f"{len(self.test) - len(held_out)} held-out sentences have no room for a marker of {language}")
        texts = [p.words for p in deformed if p]
        if rename:
            name = dict(zip(self.words, np.random.default_rng([self.seed, 2]).permutation(self.words).tolist(), strict=True))
            texts = [tuple(name[w] for w in text) for text in texts]
            held_out = [Perturbed(tuple(name[w] for w in p.words), p.places, p.marker) for p in held_out]
        size = replace(lessons.size, positions=positions)
        learner = Learner(language, held_out)
        packed: Tensor | None = None
        for number in range(lessons.seeds):
            seed = (self.seed * 100 + number) * 100 + other
            start = sentences.fresh(self.words, size, seed, language, self.device)
            trained = LanguageModel(copy.deepcopy(start.hf), start.tokenizer, language, start.weights_sha256, start.provenance)
            packed = sentences.rows(start, texts, size.context) if packed is None else packed
            told = f"{label or language}, {number + 1} of {lessons.seeds}"
            found = self.store.train(trained.hf, told, partial(self._one, trained, packed, learner, seed, told))
            start.hf.eval(), trained.hf.eval()
            learner.models.append(trained)
            learner.starts.append(start)
            learner.curves.append(found["curve"])
        return learner

    def _one(self, model: LanguageModel, data: Tensor, learner: Learner, seed: int, name: str) -> dict[str, Floats]:
        read, curve = [p.words for p in learner.test], []

        def look(_step: int, model: LanguageModel) -> None:
            curve.append(sentences.totals(model, read) / self.tokens)

        how: dict[str, Any] = {"rate": self.lessons.rate, "batch": self.lessons.batch, "seed": seed, "snapshots": self.checkpoints}
        sentences.train(model, data, self.lessons.steps, on_step=partial(self.show, name), on_snapshot=look, **how)
        return {"curve": np.stack(curve)}


def of_grammar(lessons: Lessons, seed: int, device: torch.device, show: Show, store: Kept | None = None) -> School:
    """Open a school with sentences of the grammar of agreement."""
    rng = np.random.default_rng([seed, 0])
    train, test = ([agreement.sentence(rng) for _ in range(n)] for n in (lessons.train, lessons.test))
    return School(lessons, [*agreement.vocabulary(), *perturbations.MARKERS], train, test, seed, device, show, store or Kept())


def of_text(own: OwnText, lessons: Lessons, seed: int, device: torch.device, show: Show, store: Kept | None = None) -> School:
    """Open a school with sentences of a user's text, in tokens of a byte-level BPE of 4 000 entries trained on them; 2 to 100 tokens long.

    Nothing is known about verbs and constituents there: it is for shuffles and reversals. Raises UsageError for too short a text.
    """
    texts = sentence_files.split(own.text)
    bpe = own_text.byte_pairs(texts, 4000)
    cut = [tuple(each.tokens) for each in bpe.encode_batch(texts)]
    longest = min(100, lessons.size.context - 3)
    fit = [Sentence(words, 0, 0, False, False, (), float("nan")) for words in cut if 2 <= len(words) <= longest]
    order = np.random.default_rng([seed, 0]).permutation(len(fit))
    if len(fit) < 2 * lessons.test:
        raise UsageError(f"{own.name} holds {len(fit)} sentences of 2 to {longest} tokens, {2 * lessons.test} are needed")
    held = {int(i) for i in order[: lessons.test]}
    train = [fit[int(i)] for i in order[lessons.test : lessons.test + lessons.train]]
    words = [word for word, _ in sorted(bpe.get_vocab().items(), key=lambda item: item[1])]
    return School(lessons, [*words, *perturbations.MARKERS], train, [fit[i] for i in sorted(held)], seed, device, show, store or Kept())


def marker_surprise(model: LanguageModel, test: Sequence[Perturbed]) -> Floats:
    """For each sentence with a marker: surprisal of the token that follows when there is none, minus that of the marker, in bits [n].

    Both are read after the same words, so lengths of context do not differ.
    """
    marked = [p for p in test if p.marker >= 0]
    without = [p.words[: p.marker] + p.words[p.marker + 1 :] for p in marked]
    there, gone = sentences.surprisals(model, [p.words for p in marked]), sentences.surprisals(model, without)
    return np.array([b[p.marker] - a[p.marker] for p, a, b in zip(marked, there, gone, strict=True)]) / np.log(2)


def number_surprise(model: LanguageModel, test: Sequence[Perturbed]) -> Floats:
    """For each sentence with a marker: surprisal of the other number's marker at its place, minus its own, in bits [n].

    Unlike `marker_surprise` it does not hang on how far the place itself can be foretold, which differs between rules.
    """
    other = {perturbations.SINGULAR: perturbations.PLURAL, perturbations.PLURAL: perturbations.SINGULAR}
    marked = [p for p in test if p.marker >= 0]
    wrong = [(*p.words[: p.marker], other[p.words[p.marker]], *p.words[p.marker + 1 :]) for p in marked]
    own, turned = (sentences.surprisals(model, texts) for texts in ([p.words for p in marked], wrong))
    return np.array([b[p.marker] - a[p.marker] for p, a, b in zip(marked, own, turned, strict=True)]) / np.log(2)


def constituents(model: LanguageModel, originals: Sequence[Sentence], test: Sequence[Perturbed]) -> tuple[Floats, list[str], list[int]]:
    """Mean state of each constituent's tokens, wherever they came to stand: vectors [spans, width], labels, numbers of the sentences."""
    seen = sentences.states(model, [p.words for p in test])
    vectors, labels, owners = [], [], []
    for i, (original, deformed) in enumerate(zip(originals, test, strict=True)):
        for label, start, end in original.spans:
            vectors.append(seen[i][list(deformed.places[start:end])].mean(0))
            labels.append(label)
            owners.append(i)
    return np.array(vectors, np.float64), labels, owners


def tell_constituents(
    model: LanguageModel, originals: Sequence[Sentence], test: Sequence[Perturbed], rng: np.random.Generator
) -> tuple[Floats, Floats, list[int]]:
    """Train a probe for the kind of a constituent on four fifths of the sentences: whether it is right about each one of the last fifth, the same
    with permuted labels, and the numbers of their sentences."""
    from sklearn.linear_model import LogisticRegression

    vectors, labels, owners = constituents(model, originals, test)
    vectors = (vectors - vectors.mean(0)) / (vectors.std(0) + 1e-9)
    kinds, held_out = np.array(labels), np.array(owners) >= 0.8 * len(originals)
    right = []
    for given in (kinds, rng.permutation(kinds)):
        probe = LogisticRegression(max_iter=500).fit(vectors[~held_out], given[~held_out])
        right.append((probe.predict(vectors[held_out]) == given[held_out]).astype(np.float64))
    return right[0], right[1], [owner for owner, out in zip(owners, held_out, strict=True) if out]


def prefixes(model: LanguageModel, language: str, pairs: Sequence[tuple[Sentence, Sentence]]) -> tuple[list[list[int]], list[list[int]]]:
    """Token ids of the first and of the second sentences of pairs in a *Hop language, from the end token before them up to their marker."""
    number, nothing = model.tokenizer.get_vocab(), np.random.default_rng(0)
    sides: tuple[list[list[int]], list[list[int]]] = ([], [])
    for pair in pairs:
        for side, each in zip(sides, pair, strict=True):
            deformed = LANGUAGES[language].perturb(each, nothing)
            if deformed is None or deformed.marker < 0:
                raise UsageError(f"'{' '.join(each.words)}' has no marker in {language}")
            side.append([number[word] for word in (sentences.END, *deformed.words[: deformed.marker])])
    return sides
