"""Checkpoints published under fla-hub (GLA, model type `gla`): the same layers under the same names of weights, another configuration."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file

from nullius.errors import SubjectError
from nullius.models.architectures.config import DecoderConfig
from nullius.models.architectures.decoder import DecoderForCausalLM, DecoderModel, DecoderPreTrainedModel

GATE, UP = "mlp.gate_proj.weight", "mlp.up_proj.weight"
# keys of such a configuration that change what is computed, with the only value that is supported here
REQUIRED: dict[str, Any] = {
    "use_output_gate": True,
    "hidden_act": "swish",
    "elementwise_affine": True,
    "use_gk": True,
    "use_gv": False,
    "feature_map": None,
    "clamp_min": None,
    "attn": None,
    "fuse_norm": True,
}


class GLAConfig(DecoderConfig):
    """Configuration of a published GLA checkpoint, under its own keys; `num_heads` and `norm_eps` are read as ours.

    Raises SubjectError for a variant that no published checkpoint has.
    """

    model_type = "gla"
    attribute_map = {"num_heads": "num_attention_heads", "norm_eps": "rms_norm_eps"}  # noqa: RUF012

    hidden_size: int = 2048
    mixer: str = "gla"
    num_attention_heads: int = 4
    tie_word_embeddings: bool = False
    bos_token_id: int | None = 1
    eos_token_id: int | list[int] | None = 2
    hidden_ratio: int | None = 4
    use_short_conv: bool = False
    conv_size: int = 4

    def __post_init__(self, **kwargs: Any) -> None:
        """Translate, and refuse what would be computed wrongly."""
        for theirs, ours in self.attribute_map.items():
            if theirs in kwargs:
                setattr(self, ours, kwargs.pop(theirs))
        for key, value in REQUIRED.items():
            if kwargs.get(key, value) != value:
                raise SubjectError(f"a GLA checkpoint with {key} = {kwargs[key]!r} is not supported, only {value!r}")
        if kwargs.get("num_kv_heads") not in (None, self.num_attention_heads):
            raise SubjectError("a GLA checkpoint with fewer key heads than query heads is not supported")
        if self.intermediate_size is None:
            self.intermediate_size = -(-int(self.hidden_size * (self.hidden_ratio or 4) * 2 / 3) // 256) * 256
        self.short_conv = self.conv_size if self.use_short_conv else 0
        super().__post_init__(**kwargs)


class PublishedModel(DecoderPreTrainedModel):
    """What both classes below share: how they are loaded."""

    config_class = GLAConfig

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *inputs: Any, **how: Any) -> Any:
        """As transformers' own. Until 2025 gate and up projection were one weight [2 · inner, d], gate first: a folder's is cut in two."""
        folder = Path(str(pretrained_model_name_or_path))
        files = sorted(folder.glob("*.safetensors")) if folder.is_dir() else []
        if files and how.get("state_dict") is None and _together(files):
            weights = {name: tensor for file in files for name, tensor in load_file(file).items()}
            for name in [name for name in weights if name.endswith(GATE)]:
                gate, up = weights[name].chunk(2)
                weights |= {name: gate.contiguous(), name.replace(GATE, UP): up.contiguous()}
            config = how.pop("config", None) or cls.config_class.from_pretrained(folder)
            return super().from_pretrained(None, *inputs, config=config, state_dict=weights, **how)
        return super().from_pretrained(pretrained_model_name_or_path, *inputs, **how)


def _together(files: list[Path]) -> bool:
    """Whether gate and up projection are one weight in these files. Damaged ones are left to who loads them."""
    names: set[str] = set()
    try:
        for file in files:
            with safe_open(file, "pt") as opened:
                names |= set(opened.keys())
    except (OSError, SafetensorError):
        return False
    return any(name.endswith(GATE) for name in names) and not any(name.endswith(UP) for name in names)


class GLAModel(PublishedModel, DecoderModel):
    """A decoder made from a published configuration, without its unembedding."""


class GLAForCausalLM(PublishedModel, DecoderForCausalLM):
    """A decoder made from a published configuration."""
