"""The inference forms of Hugging Face models.

Causal language model
  input_ids i64[batch, sequence], attention_mask i64[batch, total],
  position_ids i64[batch, sequence], keep i64[1],
  past.<i>.key and past.<i>.value f32[batch, kv_heads, past, head_dim]
  -> logits f32[batch, kept, vocabulary], present.<i>.key, present.<i>.value
  `total` is past + sequence. `keep` is how many of the last positions get logits: 1 while
  generating, `sequence` for perplexity; the head is the widest linear of a small model.
Classifier
  input_ids, attention_mask i64[batch, sequence] -> logits f32[batch, labels]
"""

import copy
import inspect
from dataclasses import dataclass, replace
from typing import cast

import torch
from torch import nn
from transformers import DynamicCache, PretrainedConfig, PreTrainedModel

from compiler.export.form import SHORT, Form, Port, Repeated, layer_list, shortened
from compiler.huggingface import (
    Adopted,
    MeanPoolClassifier,
    SequenceClassifier,
    classifier_name,
)


@dataclass(frozen=True)
class KeyValueShape:
    """What one position of the cache holds, per layer key and value."""

    layers: int
    kv_heads: int
    head_dim: int


class CachedCausalLM(Adopted):
    """The inference form of a causal language model; see the top of the file."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__(model)
        known = inspect.signature(model.forward).parameters
        self.takes_positions = "position_ids" in known
        self.takes_kept = "logits_to_keep" in known

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        position_ids: torch.Tensor,
        keep: torch.Tensor,
        past: list[tuple[torch.Tensor, torch.Tensor]],
    ) -> tuple[torch.Tensor, list[tuple[torch.Tensor, torch.Tensor]]]:
        options = {"position_ids": position_ids} if self.takes_positions else {}
        kept = last_positions(keep, input_ids.shape[1])
        options |= {"logits_to_keep": kept} if self.takes_kept else {}
        output = self.source(
            input_ids=input_ids,
            attention_mask=attention_mask,
            past_key_values=DynamicCache(past),
            use_cache=True,
            **options,
        )
        logits = output.logits if self.takes_kept else output.logits[:, kept]
        return logits, [(layer.keys, layer.values) for layer in output.past_key_values.layers]


def last_positions(keep: torch.Tensor, sequence: int) -> torch.Tensor:
    """The indices sequence - keep .. sequence - 1; the checks are what torch.export asks for."""
    count = cast(int, keep.item())
    torch._check(count >= 1)  # type: ignore[no-untyped-call]
    torch._check(count <= sequence)  # type: ignore[no-untyped-call]
    return torch.arange(count) + (sequence - count)


def causal_form(model: PreTrainedModel) -> Form:
    """The inference form of a causal language model."""
    layers = key_value_shape(model.config).layers
    form = _causal_form(model, layers)
    path = layer_list(model, layers)
    if path is None:
        return form
    short = _causal_form(shortened(model, path), SHORT)
    return replace(form, repeated=Repeated(path, layers, short, ("past", "present")))


def _causal_form(model: PreTrainedModel, layers: int) -> Form:
    shape = key_value_shape(model.config)
    batch, sequence, past = 2, 5, 7
    cache = (batch, shape.kv_heads, past, shape.head_dim)
    positions = torch.arange(past, past + sequence)
    example = (
        torch.zeros(batch, sequence, dtype=torch.int64),
        torch.ones(batch, past + sequence, dtype=torch.int64),
        positions[None].repeat(batch, 1),
        torch.tensor([3]),
        [(torch.zeros(cache), torch.zeros(cache)) for _ in range(layers)],
    )
    inputs = (
        Port("input_ids", ("batch", "sequence")),
        Port("attention_mask", ("batch", "total")),
        Port("position_ids", ("batch", "sequence")),
        Port("keep", (1,)),
        *_cache_ports("past", shape, "past", layers),
    )
    head = model.get_output_embeddings()  # type: ignore[no-untyped-call]
    vocabulary = head.weight.shape[0]
    logits = Port("logits", ("batch", "kept", vocabulary))
    outputs = (logits, *_cache_ports("present", shape, "total", layers))
    return Form(CachedCausalLM(model).eval(), example, inputs, outputs)


def encoder_form(module: MeanPoolClassifier | SequenceClassifier) -> Form:
    """The inference form of a classifier, which is its training form."""
    batch, sequence = 2, 5
    ids = torch.zeros(batch, sequence, dtype=torch.int64)
    labels = cast(nn.Linear, module.get_submodule(classifier_name(module))).out_features
    inputs = tuple(Port(name, ("batch", "sequence")) for name in ("input_ids", "attention_mask"))
    form = Form(module, (ids, torch.ones_like(ids)), inputs, (Port("logits", ("batch", labels)),))
    layers = module.source.config.get_text_config().num_hidden_layers
    path = layer_list(module, layers)
    if path is None:
        return form
    short = copy.copy(module)
    short._modules = dict(module._modules)
    short.adopt(shortened(module.source, path))
    return replace(form, repeated=Repeated(path, layers, replace(form, module=short)))


def key_value_shape(config: PretrainedConfig) -> KeyValueShape:
    text = config.get_text_config()
    heads = text.num_attention_heads
    return KeyValueShape(
        layers=text.num_hidden_layers,
        kv_heads=getattr(text, "num_key_value_heads", None) or heads,
        head_dim=getattr(text, "head_dim", None) or text.hidden_size // heads,
    )


def _cache_ports(prefix: str, shape: KeyValueShape, axis: str, layers: int) -> tuple[Port, ...]:
    return tuple(
        Port(f"{prefix}.{layer}.{part}", ("batch", shape.kv_heads, axis, shape.head_dim))
        for layer in range(layers)
        for part in ("key", "value")
    )
