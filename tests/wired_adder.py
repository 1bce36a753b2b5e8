"""A transformer wired by hand that adds and subtracts single digits, in which it is known which heads and which feed-forward block do it.

A Llama of six layers of ten heads. In layer 3 head 1 copies the first operand to the last token, head 4 the second, head 7 the operator, each by
attending to its own distance from the end. In layer 4 a table of neurons turns the three into the answer. All other heads write faint noise that
nobody reads. With a twin, heads 2, 5 and 8 of layer 3 do the same again: each is then spare, and only both of a pair together are not.
"""

from __future__ import annotations

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from nullius.models.language_model import LanguageModel

LAYER, TABLE = 3, 4
HEADS = {"first operand": 1, "second operand": 4, "operator": 7}
TWINS = {"first operand": 2, "second operand": 5, "operator": 8}
DISTANCE = {"first operand": 3, "second operand": 1, "operator": 2}
N_HEADS, D_HEAD = 10, 32
DIGIT, SIGN, CONSTANT = slice(0, 10), slice(10, 12), 12
SLOTS = {"first operand": slice(13, 23), "second operand": slice(23, 33), "operator": slice(33, 35)}
OUT, NOISE = slice(35, 45), slice(45, 50)
D_MODEL = 50


def wired_adder(twin: bool = False) -> LanguageModel:
    """Build it."""
    words = ["<|endoftext|>", "<unk>", *map(str, range(10)), "+", "-", "plus", "minus", "=", "is", "Q", "A", ":", "What", "?"]
    ids = {word: i for i, word in enumerate(words)}
    tokens = Tokenizer(models.WordLevel(ids, unk_token="<unk>"))
    tokens.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=tokens, unk_token="<unk>", eos_token="<|endoftext|>", pad_token="<|endoftext|>")
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(ids), hidden_size=D_MODEL, intermediate_size=110, num_hidden_layers=6, num_attention_heads=N_HEADS,
        num_key_value_heads=N_HEADS, head_dim=D_HEAD, rms_norm_eps=1e-8, tie_word_embeddings=False,
    )  # fmt: skip
    hf = LlamaForCausalLM(config)
    with torch.no_grad():
        for name, parameter in hf.named_parameters():
            if "norm" not in name:
                parameter.zero_()
        embed, unembed = hf.get_input_embeddings().weight, hf.get_output_embeddings().weight
        embed[:, CONSTANT] = 1
        for digit in range(10):
            embed[ids[str(digit)], DIGIT.start + digit] = 1
            unembed[ids[str(digit)], OUT.start + digit] = 1.5
        for sign, names in enumerate((("+", "plus"), ("-", "minus"))):
            for name in names:
                embed[ids[name], SIGN.start + sign] = 1
        embed[embed.sum(1) == 1, NOISE.start] = 1  # two ones in every token: their norms are equal, and so are the lengths of their keys
        for layer in hf.model.layers:
            layer.self_attn.o_proj.weight[NOISE] = 0.002 * torch.randn(5, N_HEADS * D_HEAD)
            layer.self_attn.v_proj.weight[:] = 0.1 * torch.randn_like(layer.self_attn.v_proj.weight)
        scale = (D_MODEL / 2) ** 0.5  # of an input with two ones, through its norm
        attention = hf.model.layers[LAYER].self_attn
        turns = 1.0 / config.rope_parameters["rope_theta"] ** (torch.arange(0, D_HEAD, 2) / D_HEAD)
        for role, numbers in {role: [HEADS[role], *([TWINS[role]] if twin else [])] for role in HEADS}.items():
            for number in numbers:
                first = number * D_HEAD
                half = slice(first, first + D_HEAD // 2)
                rest = slice(first + D_HEAD // 2, first + D_HEAD)
                attention.q_proj.weight[half, CONSTANT] = 5
                attention.k_proj.weight[half, CONSTANT] = torch.cos(DISTANCE[role] * turns)
                attention.k_proj.weight[rest, CONSTANT] = torch.sin(DISTANCE[role] * turns)
                read, slot = SIGN if role == "operator" else DIGIT, SLOTS[role]
                width = read.stop - read.start
                attention.v_proj.weight[first : first + D_HEAD] = 0
                attention.v_proj.weight[first : first + width, read] = torch.eye(width) / scale
                attention.o_proj.weight[:, first : first + D_HEAD] = 0
                attention.o_proj.weight[slot, first : first + width] = torch.eye(width)
        _table(hf.model.layers[TABLE].mlp)
    return LanguageModel.wrap(hf, tokenizer, "wired-adder-twin" if twin else "wired-adder")


def _table(mlp: torch.nn.Module) -> None:
    """One neuron for each problem: on where both operands and the operator are there, it writes the answer."""
    neuron = 0
    for sign in (0, 1):
        for a in range(10):
            for b in range(10):
                value = a - b if sign else a + b
                if 0 <= value <= 9:
                    mlp.gate_proj.weight[neuron, SLOTS["first operand"].start + a] = 10
                    mlp.gate_proj.weight[neuron, SLOTS["second operand"].start + b] = 10
                    mlp.gate_proj.weight[neuron, SLOTS["operator"].start + sign] = 10
                    mlp.gate_proj.weight[neuron, CONSTANT] = -25
                    mlp.up_proj.weight[neuron, CONSTANT] = 1
                    mlp.down_proj.weight[OUT.start + value, neuron] = 0.1
                    neuron += 1
    assert neuron == 110
