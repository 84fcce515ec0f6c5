"""What a token that is read, and one that is written, pass of a model.

A decoder reads and writes with the whole model. An encoder-decoder reads with its encoder and with
the cross-attention's keys and values, which are kept; it writes with the rest of its decoder.
"""

from typing import NamedTuple

from planner.architecture import Architecture
from planner.architecture.record import UNFORMATTED
from planner.cost.elementwise import remembered


class Stack(NamedTuple):
    """Weights of linears: those stored, and those that one token passes; and blocks.

    `share` is of all linears, and is taken for that of the adapters on them.
    """

    linears: int
    active: int
    blocks: int
    share: float = 1.0


@remembered
def reading(shape: Architecture) -> Stack:
    if shape.kind != "encoder_decoder":
        return _whole(shape)
    linears = [t for t in shape.targets if t.role not in UNFORMATTED]
    encoding = sum(t.out_features * t.in_features for t in linears if _encodes(t.name))
    # A decoder's layer has two attentions of one shape, of which one is over the encoder's output.
    crossed = sum(
        t.out_features * t.in_features
        for t in linears
        if t.role in ("attention.key", "attention.value") and not _encodes(t.name)
    )
    read = encoding + crossed // 2
    return Stack(read, read, shape.encoder_layers, read / shape.linear_parameters)


@remembered
def writing(shape: Architecture) -> Stack:
    if shape.kind != "encoder_decoder":
        return _whole(shape)
    left = shape.linear_parameters - reading(shape).linears
    return Stack(left, left, shape.layers, left / shape.linear_parameters)


def _whole(shape: Architecture) -> Stack:
    return Stack(shape.linear_parameters, shape.active_linear_parameters, shape.layers)


def _encodes(name: str) -> bool:
    """Of a module of the encoder: "encoder.block.0.…", "model.encoder.layers.0.…"."""
    return "encoder" in name.split(".")
