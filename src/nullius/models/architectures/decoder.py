"""The decoder: embedding, a stack of pre-norm layers (a mixer, then a SwiGLU), norm, unembedding. A model of transformers like any other."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import GenerationMixin, PreTrainedModel
from transformers import initialization as init
from transformers.cache_utils import Cache
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast
from transformers.utils import can_return_tuple

from nullius.errors import NulliusError
from nullius.models.architectures.cache import prepare
from nullius.models.architectures.config import SHADOWED, DecoderConfig
from nullius.models.architectures.context import Context, see
from nullius.models.architectures.gated import GatedLinearAttention, ShortConv
from nullius.models.architectures.mixers import (
    ApproximateAttention,
    Mixer,
    NoMixing,
    RMSNorm,
    ShadowAttention,
    SoftmaxAttention,
    StaticAttention,
)
from nullius.models.architectures.projection import swiglu
from nullius.models.architectures.queryfree import QueryFreeAttention

CLASSES: dict[str, Any] = {
    "softmax": SoftmaxAttention,
    **dict.fromkeys(("gla", "retnet", "scalar", "ungated"), GatedLinearAttention),
    "mlp": NoMixing,
    "approximate": ApproximateAttention,
    "non-approximate": QueryFreeAttention,
    "random": ShadowAttention,
    "fixed": ShadowAttention,
    "static": StaticAttention,
}


class SwiGLU(nn.Module):
    """The feed-forward block: down(SiLU(gate(x)) ⊙ up(x)) (arXiv 2002.05202)."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        inner = config.intermediate_size or 0
        self.gate_proj, self.up_proj = (nn.Linear(config.hidden_size, inner, bias=False) for _ in range(2))
        self.down_proj = nn.Linear(inner, config.hidden_size, bias=False)

    def forward(self, hidden_states: Tensor) -> Tensor:
        """x [B, T, d] → [B, T, d]."""
        return swiglu(hidden_states, self.gate_proj, self.up_proj, self.down_proj)

    def unhooked(self, x: Tensor) -> Tensor:
        """The same, unseen by hooks."""
        return self.down_proj.forward(F.silu(self.gate_proj.forward(x)) * self.up_proj.forward(x))


class DecoderLayer(GradientCheckpointingLayer):
    """x + mixer(norm(x)), then x + SwiGLU(norm(x)).

    Where the decoder has a shadow stream, it takes the same way through the same weights; hooks on the layer's parts see the stream alone.
    """

    def __init__(self, config: DecoderConfig, index: int) -> None:
        super().__init__()
        assert config.mixers is not None
        self.attn_norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.attn: Mixer = CLASSES[config.mixers[index]](config, index)
        self.mlp_norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = SwiGLU(config)

    def forward(self, hidden_states: Tensor, context: Context, shadow: Tensor | None = None) -> Any:
        """hidden_states [B, T, d] → the same shape; with shadow [1, L, d], both."""
        source = shadow if isinstance(self.attn, ShadowAttention) else context.embedded if isinstance(self.attn, StaticAttention) else None
        source = None if source is None else self.attn_norm.forward(source)
        mixed, pattern = self.attn(self.attn_norm(hidden_states), context, source)
        if pattern is not None:
            context.patterns[self.attn.layer] = pattern
        hidden_states = hidden_states + mixed
        hidden_states = hidden_states + self.mlp(self.mlp_norm(hidden_states))
        return hidden_states if shadow is None else (hidden_states, self._shadow(shadow))

    def _shadow(self, shadow: Tensor) -> Tensor:
        """The shadow stream has its own queries, keys and values in every layer: it is an ordinary sequence."""
        attn: Any = self.attn
        x = self.attn_norm.forward(shadow)
        places = torch.arange(x.shape[1], device=x.device).unsqueeze(0)
        q, k = attn.queries_and_keys(x, attn.turns(places, x), hooked=False)
        z = attn.causal(q, k, attn.split(attn.v_proj.forward(x)))
        shadow = shadow + attn.o_proj.forward(z.transpose(1, 2).flatten(2))
        return shadow + self.mlp.unhooked(self.mlp_norm.forward(shadow))


class DecoderPreTrainedModel(PreTrainedModel):
    """What both classes below share: how weights begin, and what transformers may do with them."""

    config: DecoderConfig
    config_class = DecoderConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _no_split_modules = ["DecoderLayer"]  # noqa: RUF012  (transformers reads the class)
    _skip_keys_device_placement = ["past_key_values"]  # noqa: RUF012
    _supports_sdpa = True
    _supports_attention_backend = True
    _is_stateful = True  # a recurrent state cannot go back: no assisted decoding

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, ShortConv):
            init.normal_(module.weight, std=module.width**-0.5)


class DecoderModel(DecoderPreTrainedModel):
    """The decoder without its unembedding. `skipped`: layers that are left out (see `skipping`)."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__(config)
        self.embeddings = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(DecoderLayer(config, i) for i in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.gradient_checkpointing = False
        self.skipped: frozenset[int] = frozenset()
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        """Return the embedding."""
        return self.embeddings

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace the embedding."""
        self.embeddings = value  # type: ignore[assignment]

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        cu_seqlens: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        **_: Any,
    ) -> BaseModelOutputWithPast:
        """Run all layers over input_ids [B, T] or inputs_embeds [B, T, d].

        attention_mask: [B, past + T], 0 at padding, left or right. cu_seqlens: [S + 1], offsets of sequences packed into one row (B = 1), which
        see nothing of each other. output_attentions: patterns of the layers that form one, None for the others; only with
        attn_implementation="eager". Raises NulliusError naming what does not fit.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise NulliusError("a decoder takes input_ids or inputs_embeds, one of them")
        embedded: Tensor = self.embeddings(input_ids) if inputs_embeds is None else inputs_embeds
        if torch.is_autocast_enabled(embedded.device.type):  # the stream, read and written by every layer, in the type of the maps
            embedded = embedded.to(torch.get_autocast_dtype(embedded.device.type))
        use_cache = (self.config.use_cache and not self.training) if use_cache is None else use_cache
        if use_cache and self.gradient_checkpointing and self.training:
            use_cache = False
        cache = prepare(past_key_values, self.config) if use_cache or past_key_values is not None else None
        if cache is not None and cu_seqlens is not None and past_key_values is None:
            cache = None  # packed sequences are for training: each would need a cache of its own
        if cache is not None and self.skipped:
            raise NulliusError("a decoder with skipped layers cannot decode step by step: pass use_cache=False")
        context = see(embedded, attention_mask, position_ids, cu_seqlens, cache)
        turning = next((layer.attn for layer in self.layers if isinstance(layer.attn, SoftmaxAttention)), None)
        if turning is not None:  # once for all layers
            context.turn = turning.turns(context.positions, embedded)
        shadow = self._shadow(context, embedded)
        x, streams = embedded, []
        for i, layer in enumerate(self.layers):
            if i in self.skipped:
                continue
            if output_hidden_states:
                streams.append(x)
            if shadow is None:
                x = layer(x, context)
            else:
                x, shadow = layer(x, context, shadow)
        x = self.norm(x)
        patterns = tuple(context.patterns.get(i) for i in range(len(self.layers))) if output_attentions else None
        return BaseModelOutputWithPast(x, cache, (*streams, x) if output_hidden_states else None, patterns)  # type: ignore[arg-type]

    def _shadow(self, context: Context, like: Tensor) -> Tensor | None:
        """Begin the shadow stream [1, L, d], L covering every position of the pass. No gradient reaches its tokens."""
        kinds = set(self.config.mixers or []) & set(SHADOWED)
        if not kinds:
            return None
        simple = context.real is None and context.offsets is None and context.cache is None
        length = like.shape[1] if simple else int(context.positions.max()) + 1
        most = self.config.max_position_embeddings
        if length > most:
            raise NulliusError(f"a decoder with {kinds.pop()} mixers takes at most {most} tokens (max_position_embeddings); got {length}")
        source: Tensor | None = getattr(self, "_source", None)
        if source is None or source.device != like.device:  # brought there once: a recorded pass (a CUDA graph) can bring nothing along
            source = self._source = self._begun().to(like.device)
        if "fixed" in kinds:
            return F.embedding(source[:length], self.embeddings.weight.detach())[None].to(like.dtype)
        return source[None, :length].to(like.dtype)

    def _begun(self) -> Tensor:
        """What the shadow stream begins with: the tokens of its text [L], or noise [L, d]."""
        if "fixed" in (self.config.mixers or []):
            return torch.tensor(self.config.shadow_tokens)
        generator = torch.Generator().manual_seed(self.config.shadow_seed)  # on the CPU: a seed gives the same noise on every device
        noise = torch.randn(self.config.max_position_embeddings, self.config.hidden_size, generator=generator)
        return noise * self.config.initializer_range


class DecoderForCausalLM(DecoderPreTrainedModel, GenerationMixin):
    """The decoder with its unembedding."""

    _tied_weights_keys = {"lm_head.weight": "model.embeddings.weight"}  # noqa: RUF012  (transformers reads the class)

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__(config)
        self.model = DecoderModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        """Return the embedding."""
        return self.model.embeddings

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace the embedding."""
        self.model.embeddings = value

    def get_output_embeddings(self) -> nn.Module:
        """Return the unembedding."""
        return self.lm_head

    def set_output_embeddings(self, value: nn.Module) -> None:
        """Replace the unembedding."""
        self.lm_head = value

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        cu_seqlens: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """As `DecoderModel.forward`, with logits [B, T, V] (of the last `logits_to_keep` positions, 0: all) and, given labels [B, T], the loss."""
        body = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            cu_seqlens=cu_seqlens,
            output_attentions=output_attentions,
            output_hidden_states=output_hidden_states,
            return_dict=True,
        )
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.lm_head(body.last_hidden_state[:, kept])
        loss = None
        if labels is not None:
            loss = self.loss_function(logits=logits, labels=labels, vocab_size=self.config.vocab_size, **kwargs)
        return CausalLMOutputWithPast(loss, logits, body.past_key_values, body.hidden_states, body.attentions)
