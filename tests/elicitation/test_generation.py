"""Answers: prompts are continued, or asked in the chat template with exactly one beginning-of-text token."""

import copy

from nullius.elicitation.generation import answers
from nullius.models.language_model import LanguageModel

TEMPLATE = "{% for m in messages %}<|endoftext|>{{ m['content'] }}\n{% endfor %}{% if add_generation_prompt %}Answer:{% endif %}"


def test_base_subjects_continue_the_prompt(toy):
    prompts = ["The capital of France is", "One two three four five six"]
    assert answers(toy, prompts, 4) == toy.generate(prompts, 4)


def test_batching_changes_nothing(toy):
    prompts = [" ".join(["word"] * n) for n in (1, 7, 3)]
    assert answers(toy, prompts, 4, batch_size=1) == answers(toy, prompts, 4, batch_size=3)


def test_chat_subjects_are_asked_in_their_template(toy):
    tokenizer = copy.deepcopy(toy.tokenizer)
    tokenizer.chat_template = TEMPLATE
    chat = LanguageModel.wrap(toy.hf, tokenizer)
    assert chat.chat
    assert answers(chat, ["Hello"], 4) == toy.generate(["Hello\nAnswer:"], 4)
