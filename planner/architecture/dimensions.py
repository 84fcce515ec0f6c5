"""A config's sizes under one set of names, as a family's modules are written in."""

from typing import NamedTuple

Shape = dict[str, int | bool | str]


class Dimensions(NamedTuple):
    """`positions` are the rows of a table; `fields` holds the family's own options."""

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    vocab: int
    positions: int
    tied: bool
    fields: Shape
    encoder_layers: int = 0
    experts: int = 0
    experts_per_token: int = 0
    expert_intermediate: int = 0

    @property
    def queries(self) -> int:
        return self.heads * self.head_dim

    @property
    def keys(self) -> int:
        return self.kv_heads * self.head_dim

    def flag(self, name: str) -> bool:
        return bool(self.fields[name])

    def number(self, name: str) -> int:
        """0 where the config leaves it out."""
        return int(self.fields.get(name, 0))

    def text(self, name: str) -> str:
        return str(self.fields[name])
