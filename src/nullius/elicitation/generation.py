"""Answers written by greedy decoding. How an answer is read is the task's business (its rule lives with its stimuli)."""

from __future__ import annotations

from collections.abc import Sequence

from nullius.models.language_model import LanguageModel


def answers(model: LanguageModel, prompts: Sequence[str], max_new_tokens: int, batch_size: int = 16) -> list[str]:
    """Greedy answers, batched by length.

    A subject with a chat template is asked in it, as one user message; any other continues the prompt.
    """
    texts = [_as_chat(model, prompt) for prompt in prompts] if model.chat else list(prompts)
    return model.generate(texts, max_new_tokens, batch_size=batch_size)


def _as_chat(model: LanguageModel, prompt: str) -> str:
    message = [{"role": "user", "content": prompt}]
    text: str = model.tokenizer.apply_chat_template(message, tokenize=False, add_generation_prompt=True)
    ids = model.tokens(text)
    if ids and ids[0] == model.bos_id:  # the template writes it out; the model adds it again
        text = text.removeprefix(model.tokenizer.convert_ids_to_tokens(ids[0]))
    return text
