"""Boxes: prompts, places and swaps are what they say."""

import numpy as np
import pytest

from nullius.stimuli import boxes
from nullius.stimuli.boxes import Boxes


def test_a_prompt_and_its_places():
    item = Boxes(("pen", "cup", "hat"), ("A", "C", "B"), "C")
    assert item.prompt == "The pen is in Box A, the cup is in Box C, the hat is in Box B. Box C contains the"
    assert item.answer == " cup"
    assert item.upto("previous label") == "The pen is in Box A, the cup is in Box C"
    assert item.upto("query label") == "The pen is in Box A, the cup is in Box C, the hat is in Box B. Box C"
    assert item.upto("last") == item.prompt
    assert item.upto("object") == "The pen is in Box A, the cup"
    assert item.about(0).upto("object") == "The pen"
    assert item.about(0).answer == " pen"
    short = Boxes(("pen", "cup"), ("A", "C"), "A", "short")
    assert short.prompt == "pen in A, cup in C. A has"
    assert short.upto("previous label") == "pen in A"


@pytest.mark.parametrize("style", ["sentence", "short"])
def test_drawn(style):
    rng = np.random.default_rng(0)
    items = boxes.draw(rng, 400, 5, style=style)
    assert all(len(set(item.objects)) == len(set(item.labels)) == 5 for item in items)
    assert all(item.prompt.startswith(item.upto("previous label")) for item in items)
    counts = np.bincount([item.index for item in items], minlength=5)
    assert counts.min() > 50  # 80 expected
    other, places = boxes.strangers(items, rng)
    assert all(a.asked not in a.labels for a in other)
    assert all(place != item.index for place, item in zip(places, items, strict=True))
    with pytest.raises(ValueError, match="27 boxes"):
        boxes.draw(rng, 1, 27)


def test_swaps_ask_for_one_piece_of_information_alone():
    rng = np.random.default_rng(0)
    for swap in boxes.swaps("position", rng, 100, 4):
        assert swap.base.index != swap.source.index
        assert swap.target == swap.base.about(swap.source.index).answer != swap.base.answer
        assert not set(swap.base.objects) & set(swap.source.objects)
        assert swap.decoy not in (swap.target, swap.base.answer)
        assert swap.decoy.strip() in swap.base.objects
    for swap in boxes.swaps("object", rng, 100, 4):
        assert swap.target == swap.source.answer
        assert swap.target.strip() not in swap.base.objects
        assert swap.decoy.strip() in swap.source.objects
        assert swap.decoy != swap.target
    for swap in boxes.swaps("label", rng, 100, 4):
        assert set(swap.base.labels) == set(swap.source.labels)
        by_label = swap.base.objects[swap.base.labels.index(swap.source.asked)]
        by_place = swap.base.objects[swap.source.index]
        assert swap.target == f" {by_label}"
        assert len({by_label, by_place, swap.base.answer.strip(), swap.decoy.strip()}) == 4
    with pytest.raises(ValueError, match="at least 4 boxes"):
        boxes.swaps("label", rng, 1, 3)


def test_words_are_one_word_each_and_distinct():
    assert len(set(boxes.OBJECTS)) == len(boxes.OBJECTS) == 48
    assert all(word.isalpha() and word.islower() for word in boxes.OBJECTS)
