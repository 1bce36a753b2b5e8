"""A transformer wired by hand, in which it is known what decides between memory and context.

A Llama with three layers of eight heads (four key-value heads). In layer 0, head 2 attends to a city named in the prompt and writes it
(gain 1); memory of country i has strength m_i and sits either in head 5, which attends to the country and writes its capital, or in the MLP of
layer 0, to which head 5 only carries the name of the country. All other heads write faint noise. The answer is the city with more weight:
with head 2 scaled by α it is the one in context exactly where α > m_i (memory in a head).
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from nullius.models.language_model import LanguageModel
from nullius.stimuli import capitals

CONTEXT_HEAD, MEMORY_HEAD = (0, 2), (0, 5)
LAYERS, HEADS, KV_HEADS, D_HEAD = 3, 8, 4, 64
SHARP = 40.0


def known_facts(n: int = 60) -> list[capitals.Fact]:
    """Countries and capitals of one plain word each, no word shared."""
    plain = [fact for fact in capitals.facts() if fact.country.isalpha() and fact.capital.isalpha() and fact.spoken == fact.country]
    return plain[:n]


def wired(strengths: Mapping[str, float], memory: str = "head") -> LanguageModel:
    """Build it. strengths: country → m_i (at most 60 of `known_facts`). memory: "head" or "mlp"."""
    facts = [fact for fact in known_facts() if fact.country in strengths]
    n = len(facts)
    assert n <= D_HEAD - 2
    words = {word for rows in capitals.TEMPLATES.values() for row in rows for word in _words(" ".join(row))}
    vocabulary = ["<|endoftext|>", "<unk>", *sorted(words), *(f.country for f in facts), *(f.capital for f in facts)]
    ids = {word: i for i, word in enumerate(dict.fromkeys(vocabulary))}
    tokens = Tokenizer(models.WordLevel(ids, unk_token="<unk>"))
    tokens.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=tokens, unk_token="<unk>", eos_token="<|endoftext|>", pad_token="<|endoftext|>")
    country, city, out = (slice(k * n, (k + 1) * n) for k in range(3))
    is_country, is_city, constant = 3 * n, 3 * n + 1, 3 * n + 2
    d_model = 3 * n + 4
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(ids), hidden_size=d_model, intermediate_size=n, num_hidden_layers=LAYERS, num_attention_heads=HEADS,
        num_key_value_heads=KV_HEADS, head_dim=D_HEAD, rope_theta=1e12, rms_norm_eps=1e-8, tie_word_embeddings=False,
    )  # fmt: skip
    hf = LlamaForCausalLM(config)
    with torch.no_grad():
        for name, parameter in hf.named_parameters():
            if "norm" not in name:
                parameter.zero_()
        embed, unembed = hf.get_input_embeddings().weight, hf.get_output_embeddings().weight
        embed[:, constant] = 1
        for i, fact in enumerate(facts):
            embed[ids[fact.country], country.start + i] = embed[ids[fact.country], is_country] = 1
            embed[ids[fact.capital], city.start + i] = embed[ids[fact.capital], is_city] = 1
            unembed[ids[fact.capital], out.start + i] = 1
        scale = (d_model / 3) ** 0.5  # RMS norm of a country or a city token: three ones
        strength = torch.tensor([strengths[fact.country] for fact in facts])
        for layer in hf.model.layers:
            attention = layer.self_attn
            attention.o_proj.weight[out] = 0.005 * torch.randn(n, HEADS * D_HEAD)
            attention.v_proj.weight[:] = 0.01 * torch.randn_like(attention.v_proj.weight)
        attention = hf.model.layers[0].self_attn
        reach = D_HEAD // 2 - 1  # the slowest pair of rotary dimensions: no position in it
        for head, flag, read in ((CONTEXT_HEAD[1], is_city, city), (MEMORY_HEAD[1], is_country, country)):
            shared = head * KV_HEADS // HEADS
            values, reads = slice(shared * D_HEAD, shared * D_HEAD + n), slice(head * D_HEAD, head * D_HEAD + n)
            attention.q_proj.weight[head * D_HEAD + reach, constant] = SHARP
            attention.k_proj.weight[shared * D_HEAD + reach, flag] = 1
            attention.v_proj.weight[shared * D_HEAD : (shared + 1) * D_HEAD] = 0
            attention.v_proj.weight[values, read] = torch.eye(n) / scale
            attention.o_proj.weight[:, head * D_HEAD : (head + 1) * D_HEAD] = 0
            if head == CONTEXT_HEAD[1]:
                attention.o_proj.weight[out, reads] = torch.eye(n)
            elif memory == "head":
                attention.o_proj.weight[out, reads] = torch.diag(strength)
            else:
                attention.o_proj.weight[country, reads] = torch.eye(n)
                _remember(hf.model.layers[0].mlp, country, constant, out, strength)
    return LanguageModel.wrap(hf, tokenizer, f"wired-{memory}")


def _remember(mlp: torch.nn.Module, country: slice, constant: int, out: slice, strength: Tensor) -> None:
    """One neuron a country: on where the country's name is, it writes the capital. Gate and value are both about √d̄ there; scaled out."""
    n = len(strength)
    mlp.gate_proj.weight[:, country] = torch.eye(n)
    mlp.up_proj.weight[:, constant] = 1
    mlp.down_proj.weight[out] = torch.diag(strength) / 50


def _words(text: str) -> list[str]:
    return [word for word, _ in pre_tokenizers.Whitespace().pre_tokenize_str(text.replace("{country}", " ").replace("{answer}", " "))]
