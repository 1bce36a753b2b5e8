"""What a subject is besides its weights: the same weights under another configuration or tokenizer are told apart, and use changes nothing."""

import copy

import pytest

from nullius.models import fingerprint
from nullius.models.language_model import LanguageModel


def again(model, **changed):
    """The same weights once more, with another configuration or tokenizer."""
    hf, tokenizer = copy.deepcopy(model.hf), copy.deepcopy(model.tokenizer)
    for name, value in changed.items():
        if name == "chat_template":
            tokenizer.chat_template = value
        else:
            setattr(hf.config, name, value)
    return LanguageModel.wrap(hf, tokenizer)


def test_a_copy_is_the_same(toy):
    assert fingerprint.parts(again(toy)) == fingerprint.parts(toy)
    assert fingerprint.parts(again(toy, _name_or_path="elsewhere")) == fingerprint.parts(toy)


@pytest.mark.parametrize(
    ("changed", "part"), [({"rope_theta": 5.0}, "configuration"), ({"chat_template": "{{ messages }}!"}, "chat template")]
)
def test_what_differs_is_named(toy, changed, part):
    before, after = fingerprint.parts(toy), fingerprint.parts(again(toy, **changed))
    assert {name for name in before if before[name] != after[name]} == {part}


def test_another_tokenizer_and_another_type(toy):
    other = again(toy)
    other.tokenizer.add_tokens(["unheard-of"])
    other.hf.half()
    before, after = fingerprint.parts(toy), fingerprint.parts(other)
    assert {name for name in before if before[name] != after[name]} == {"tokenizer", "type"}
    assert after["type"] == "float16"


def test_use_changes_nothing(toy):
    subject = again(toy)
    before = fingerprint.parts(subject)
    backend = subject.tokenizer.backend_tokenizer
    subject.tokenizer(["one", "two and three"], padding=True, truncation=True, max_length=2)
    padding, truncation = backend.padding, backend.truncation
    assert padding
    assert truncation
    assert fingerprint.parts(subject) == before
    assert (backend.padding, backend.truncation) == (padding, truncation)  # and looking changes nothing either
