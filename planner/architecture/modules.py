"""What a family is made of: linears, norms and other parameters, each under its module's name."""

from collections.abc import Iterable, Iterator
from typing import NamedTuple, TypeAlias

from planner.architecture.dimensions import Dimensions


class Linear(NamedTuple):
    """A weight [out_features, in_features] and perhaps a bias [out_features]."""

    name: str
    role: str
    out_features: int
    in_features: int
    bias: bool = False

    @property
    def parameters(self) -> int:
        return self.out_features * (self.in_features + self.bias)


class Norm(NamedTuple):
    """A normalisation over `width` numbers, with its weight and perhaps a bias."""

    name: str
    width: int
    bias: bool

    @property
    def parameters(self) -> int:
        return self.width * (2 if self.bias else 1)


class Table(NamedTuple):
    """Parameters that no method targets: embeddings, positions, tokens, poolers."""

    name: str
    parameters: int


Module: TypeAlias = Linear | Norm | Table


def repeat(prefix: str, count: int, block: Iterable[Module]) -> Iterator[Module]:
    """The modules of `count` equal blocks, named prefix.number.name."""
    modules = tuple(block)
    for number in range(count):
        yield from below(f"{prefix}.{number}", modules)


def below(prefix: str, modules: Iterable[Module]) -> Iterator[Module]:
    """The modules under a longer name."""
    for module in modules:
        yield type(module)._make((f"{prefix}.{module.name}", *module[1:]))


def embedding(name: str, rows: int, width: int) -> Table:
    return Table(name, rows * width)


def head(size: Dimensions, *, bias: bool = False) -> Iterator[Module]:
    """The output head; tied, it is the embedding once more, but for its bias."""
    if not size.tied:
        yield Linear("lm_head", "head", size.vocab, size.hidden, bias)
    elif bias:
        yield Table("lm_head.bias", size.vocab)
