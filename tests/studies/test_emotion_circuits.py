"""The study finds the style heads and emotion neurons that were wired into a transformer, and nothing where no head carries the style on."""

import numpy as np
import pytest
import torch

from nullius.elicitation import emotion_judge
from nullius.elicitation.likeness import Likeness
from nullius.instruments.heads import Head
from nullius.instruments.planted.wiring import Wiring
from nullius.instruments.told import Told
from nullius.lab import runner
from nullius.lab.studies import get
from nullius.stimuli import emotions
from nullius.stimuli.emotions import EMOTIONS, LABELS, STYLES, WORDS
from nullius.training import sentences

MANNERS = EMOTIONS + STYLES
STYLE_HEAD, FEEL_LAYER = Head(0, 1), 1
OWN = {"judge": "self"}  # a planted model judges its own words; the weights of MiniLM may not be here


def words_of(text):
    return (
        text.replace(".", " . ").replace(",", " , ").replace("'", " ' ").replace("?", " ? ").replace("!", " ! ").replace(":", " : ").split()
    )


def planted(writer=True, seed=0):
    """A model that says what it was asked to feel: head 0.1 carries the manner to the end of the prompt, six neurons of layer 1 turn emotions
    into words.

    writer False: nothing carries the manner on, not even noise, and no neuron would speak of it (six that do would write along what rounding
    leaves, and be found to).
    """
    told = {word for one in emotions.scenarios() for v in emotions.VALENCES for word in words_of(one.told(v))}
    asked = set(words_of(emotions.plain_prompt("so", emotion_judge.QUESTION)))
    hints = {}  # words that only one emotion's sentences have
    for item in emotions.implied():
        for word in words_of(item.text):
            hints.setdefault(word, set()).add(item.emotion)
    hints = {word: next(iter(of)) for word, of in hints.items() if len(of) == 1 and word not in told | asked}
    code = {
        **hints,
        **{word: e for e, some in WORDS.items() for word in some},
        **{LABELS[e]: e for e in EMOTIONS},
        **{m: m for m in MANNERS},
    }
    asks = [":", "feel", "feels", *(word for some in WORDS.values() for word in some)]
    names = list(dict.fromkeys([*code, *asks, "Reply", "The", "person", "who", "wrote", "this", "table", "box", "I", "said"]))
    slots = {"manner": 12, "named": 1, "asks": 1, "felt": 12, "out": 6}
    noise = 0.01 if writer else 0.0  # 64 neurons: a circuit takes 14 a layer, and as many others must be left for a random set
    w = Wiring(names, slots, layers=4, heads=6, d_head=14, length=160, neurons=64, seed=seed, noise=noise)
    for word, manner in code.items():
        w.embed(word, "manner", MANNERS.index(manner))
        w.embed(word, "named")
    for word in asks:
        w.embed(word, "asks")
    if writer:
        w.head(STYLE_HEAD.layer, STYLE_HEAD.head, match=[("asks", "named")], copy=("manner", "felt"))
    for e, emotion in enumerate(EMOTIONS):
        if writer:
            w.neuron(FEEL_LAYER, {("felt", e): 1.0}, 0.0, {("out", e): 1.0, ("felt", e): 1.0})
        for word in (*WORDS[emotion], LABELS[emotion]):
            w.answer(word, "out", e)
    return w.model("planted feelings" if writer else "no writer")


def test_stimuli_name_no_emotion_and_are_complete():
    scenarios = emotions.scenarios()
    assert len(scenarios) == 24
    assert len(set(scenarios.field("theme"))) == 8
    held = {word for some in WORDS.values() for word in some} | set(EMOTIONS) | set(LABELS.values())
    for one in scenarios:
        for valence in emotions.VALENCES:
            assert not held & {word.lower() for word in words_of(one.told(valence))}
    by_emotion = emotions.implied()
    assert [by_emotion.field("emotion").count(e) for e in EMOTIONS] == [8] * 6
    for item in by_emotion:
        assert not held & {word.lower() for word in words_of(item.text)}, item
    assert not held & set(words_of(emotions.instruction(None)))


def test_the_judge_prefers_what_the_text_says(toy):
    model = planted()
    texts = ["grief , tears", "rage !", "", "rage !"]
    found = emotion_judge.judge(model, texts, [LABELS[e] for e in EMOTIONS])
    assert [EMOTIONS[i] for i in found.label[:2]] == ["sadness", "anger"]
    assert np.array_equal(found.rise[2], np.zeros(6))
    assert np.array_equal(found.rise[1], found.rise[3])
    assert emotion_judge.repetition("a b a b a b") == pytest.approx(0.6)
    assert emotion_judge.repetition("word") == 0


def test_perplexity_is_that_of_each_text_alone(toy):
    texts = ["beta gamma delta", "alpha", "", "beta gamma delta"]
    found = emotion_judge.perplexity(toy, texts)
    for value, text in zip(found, [*texts[:2], emotion_judge.NOTHING, texts[3]], strict=True):
        ids = torch.tensor([[toy.bos_id, *toy.tokens(text)]])
        with torch.no_grad():
            loss = torch.nn.functional.cross_entropy(toy.hf(input_ids=ids).logits[0, :-1].double(), ids[0, 1:])
        assert value == pytest.approx(float(loss.exp()), rel=1e-4)


def test_likeness_tells_classes_by_their_examples_and_random_ones_by_chance():
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(6, 32))

    def encode(texts, apart=1.0):
        rows = [apart * centres[int(text[0])] + 0.7 * np.random.default_rng(int(text)).normal(size=32) for text in texts]
        return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)

    texts, truth = [f"{k}{i:02}" for k in range(6) for i in range(20)], np.repeat(range(6), 20)
    judge = Likeness.of(texts, truth.tolist(), encode)
    assert (judge.left_out() == truth).mean() == 1
    assert judge.judge(["377", "099"]).tolist() == [3, 0]
    nothing = Likeness.of(texts, truth.tolist(), lambda some: encode(some, apart=0.0))
    assert (nothing.left_out() == truth).mean() < 0.3
    for i in (0, 45, 119):  # each example is told by all others, as if it had never been there
        others = [j for j in range(120) if j != i]
        alone = Likeness.of([texts[j] for j in others], truth[others].tolist(), lambda some: encode(some, apart=0.0))
        assert nothing.left_out()[i] == alone.judge([texts[i]])[0]


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NULLIUS_DATA", str(tmp_path_factory.mktemp("data")))
        yield runner.run(get("emotion-circuits"), planted(), seed=0, options=OWN)


def test_what_was_wired_is_found(found):
    words = {verdict.claim.id: verdict.word for verdict in found.verdicts}
    for claim in ("named-emotion-read", "context-agnostic", "few-heads", "steering-words"):
        assert words[claim] == "holds", (claim, found.verdict(claim))
    assert found.verdict("named-emotion-read").effect.estimate == 1
    for claim in (
        "circuit-expresses",
        "steering-expresses",
    ):  # driven, or steered, it writes what it was asked to feel; random sets do nothing
        verdict = found.verdict(claim)
        assert verdict.word == "holds", verdict
        assert verdict.effect.estimate > 0.6
        assert abs(verdict.control.estimate - 1 / 6) < 0.1
    assert words["circuit-rate"] == words["steering-rate"] == "out of reach"  # a small model without a chat template


def test_where_nothing_carries_the_manner_nothing_is_found():
    record = runner.run(get("emotion-circuits"), planted(writer=False), seed=0, options=OWN)
    words = {verdict.claim.id: verdict.word for verdict in record.verdicts}
    assert "holds" not in words.values(), words
    assert abs(record.verdict("named-emotion-read").effect.estimate - 1 / 6) < 0.12


def test_the_components_are_those_that_were_wired():
    model = planted()
    texts = [emotions.plain_prompt(e, one.told("neutral")) for one in emotions.scenarios() for e in EMOTIONS]
    told = Told.read(model, texts, (24, 1, 6), (list(range(12)), list(range(12, 24))))
    effects = told.effects(model)
    heads = effects["head"].abs().mean((1, 2))
    assert divmod(int(heads.argmax()), 6) == (STYLE_HEAD.layer, STYLE_HEAD.head)
    best = effects["neuron"].mean(1)[FEEL_LAYER].argmax(-1)
    assert best.tolist() == list(range(6))  # neuron e for emotion e
    importance = told.importance(model, model.encode(["table :", "I feel"]), told.mlp[2], (0.02,))
    moved = torch.cat([importance["head"][:, None], importance["neuron"][:, None]], 1).mean(2)
    assert moved[0].min() > 0
    circuits = told.circuits(effects, importance, {"neuron": 4, "head": 2})
    assert all(STYLE_HEAD.head in some.heads.get(STYLE_HEAD.layer, ()) for some in circuits)


def test_a_random_model_is_told_nothing(toy):
    record = runner.run(get("emotion-circuits"), toy, seed=0, options=OWN)
    assert {record.verdict(claim).word for claim in ("circuit-expresses", "steering-expresses", "circuit-beats-prompting")} == {
        "out of reach"
    }
    assert record.verdict("steering-words").word != "holds" or record.verdict("steering-words").effect.estimate > 0


def test_a_subject_with_no_word_for_an_emotion_is_out_of_reach():
    record = runner.run(get("emotion-circuits"), sentences.fresh(["a", "b"], sentences.Size(1, 16, 2, 32), 0), seed=0, options=OWN)
    assert {verdict.word for verdict in record.verdicts} == {"out of reach"}
    assert "a token of their own" in record.verdict("few-heads").reason
