"""What all rows of a batch begin with (worked examples, an instruction) goes through the model once, with gradients.

Keys and values of the prefix are made by one row and read by all. That is the same function of the weights as whole rows, so the gradients are the
same too, also where trained weights act in the prefix: what flows back to it from the rows adds up. Only rounding differs.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from transformers import DynamicCache

from nullius.models.language_model import Batch, LanguageModel
from nullius.training import copies

# Where it was tried (tests/training/test_shared_prefix.py)
FAMILIES = {"llama", "qwen2", "qwen3", "gemma", "gpt2", "gpt_neox", "olmo", "olmo2"}


def logits(model: LanguageModel, batch: Batch, first: int) -> Tensor | None:
    """Logits [n, T − 1 − first, V] at all positions from `first` on but the last, which predicts nothing; what all rows begin with is run once.

    None where that would save little or give something else: see `length`.
    """
    shared = length(model, batch, first)
    if not shared:
        return None
    n, width = batch.input_ids.shape
    cache: Any = DynamicCache()
    model.anatomy.decoder(input_ids=batch.input_ids[:1, :shared], past_key_values=cache, use_cache=True)
    cache.batch_repeat_interleave(n)
    return model.hf(
        input_ids=batch.input_ids[:, shared:-1],
        attention_mask=batch.attention_mask[:, :-1],
        position_ids=batch.position_ids[:, shared:-1],
        past_key_values=cache,
        use_cache=True,
        logits_to_keep=width - 1 - first,
    ).logits


def length(model: LanguageModel, batch: Batch, first: int) -> int:
    """How many tokens of those before position `first` all rows have in common; 0 where running them alone would save little or give something else.

    Little: less than half of a row, a single row, or a GPU (on which a short pass takes as long as its launches, however few its tokens). Something
    else: rows are padded, a layer does not attend to the whole prefix, dropout would strike all rows alike, an intervention is open that expects
    whole rows.
    """
    n, width = batch.input_ids.shape
    if n < 2 or model.device.type != "cpu" or not _fits(model):
        return 0
    shared = min(batch.beginning(), first)
    return shared if 2 * shared >= width else 0


def _fits(model: LanguageModel) -> bool:
    config = model.hf.config.get_text_config()
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    if config.model_type not in FAMILIES or kinds != {"full_attention"} or copies.interventions(model.hf):
        return False
    drops = any(module.p > 0 for module in model.hf.modules() if isinstance(module, nn.Dropout))
    return not drops and not getattr(config, "attention_dropout", 0)
