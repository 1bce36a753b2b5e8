"""Decoders to be tested, small and random, and a checkpoint with the names of a published one."""

import json

import torch
from safetensors.torch import save_file

from nullius.models import architectures
from nullius.models.architectures import MIXERS

WIDTH, VOCABULARY = 32, 64
PLAIN = {"hidden_size": WIDTH, "num_attention_heads": 2, "num_hidden_layers": 3, "vocab_size": VOCABULARY, "max_position_embeddings": 64}
PLAIN |= {"initializer_range": 0.3, "shadow_tokens": list(range(64)), "intermediate_size": 48}
CASES = [(name, "uniform") for name in MIXERS] + [(name, "odd") for name in MIXERS[1:]]


def make(mixer="softmax", allocation="uniform", **changes):
    torch.manual_seed(0)
    return architectures.create({**PLAIN, "mixer": mixer, "allocation": allocation, **changes}).eval()


def tokens(rows=2, length=19, seed=0):
    return torch.randint(1, VOCABULARY, (rows, length), generator=torch.Generator().manual_seed(seed))


def gap(a, b):
    return float(((a - b).abs().max() / b.abs().max()).detach())


FLA = {
    "architectures": ["GLAForCausalLM"], "attn": None, "attn_mode": "chunk", "bos_token_id": 1, "clamp_min": None, "conv_size": 4,
    "elementwise_affine": True, "eos_token_id": 2, "expand_k": 0.5, "expand_v": 1, "feature_map": None, "fuse_cross_entropy": True,
    "fuse_norm": True, "hidden_act": "swish", "hidden_ratio": 4, "hidden_size": 64, "initializer_range": 0.02, "intermediate_size": None,
    "max_position_embeddings": 2048, "model_type": "gla", "norm_eps": 1e-6, "num_heads": 2, "num_hidden_layers": 2, "num_kv_heads": None,
    "tie_word_embeddings": False, "torch_dtype": "float32", "transformers_version": "4.42.0", "use_cache": True, "use_gk": True,
    "use_gv": False, "use_output_gate": True, "use_short_conv": False,
}  # fmt: skip


def published(folder, tokenizer, vocabulary, **changes):
    """A checkpoint with the names and shapes of flash-linear-attention's GLAForCausalLM."""
    d, inner, generator = 64, 256, torch.Generator().manual_seed(3)
    shapes = {"model.embeddings.weight": (vocabulary, d), "model.norm.weight": (d,), "lm_head.weight": (vocabulary, d)}
    for i in range(2):
        at = f"model.layers.{i}"
        shapes |= {f"{at}.attn_norm.weight": (d,), f"{at}.mlp_norm.weight": (d,), f"{at}.attn.g_norm_swish_gate.weight": (d // 2,)}
        shapes |= {f"{at}.attn.{name}_proj.weight": (d // 2 if name in "qk" else d, d) for name in "qkvgo"}
        shapes |= {
            f"{at}.attn.gk_proj.0.weight": (16, d),
            f"{at}.attn.gk_proj.1.weight": (d // 2, 16),
            f"{at}.attn.gk_proj.1.bias": (d // 2,),
        }
        shapes |= {f"{at}.mlp.{name}_proj.weight": (d, inner) if name == "down" else (inner, d) for name in ("gate", "up", "down")}
    weights = {name: torch.randn(shape, generator=generator) * 0.2 for name, shape in shapes.items()}
    folder.mkdir(exist_ok=True)
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    (folder / "config.json").write_text(json.dumps({**FLA, "vocab_size": vocabulary, **changes}))
    tokenizer.save_pretrained(folder)
    return weights
