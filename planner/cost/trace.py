"""What a method costs on one site: its update run on shapes alone, or what it declares."""

from functools import lru_cache
from typing import NamedTuple

from planner.method import Cost, Dimensions, Method, Site, Target, TensorSpec
from planner.update import Dense, InputScale, LowRank, OutputScale, OutputShift, Part, Update

FLOAT_BYTES = 4
ALIGNMENT_BYTES = 64


class ShapeTensor:
    """A shape that knows whether a gradient flows to it and whether tenants share it.

    It has the operators that updates are written in. A plain class, because a search makes
    thousands of them.
    """

    __slots__ = ("shape", "shared", "trained")

    def __init__(
        self, shape: tuple[int, ...], *, trained: bool = False, shared: bool = False
    ) -> None:
        self.shape = shape
        self.trained = trained
        self.shared = shared

    @property
    def size(self) -> int:
        count = 1
        for length in self.shape:
            count *= length
        return count

    @property
    def T(self) -> "ShapeTensor":
        return ShapeTensor(self.shape[::-1], trained=self.trained, shared=self.shared)

    def __matmul__(self, other: "ShapeTensor") -> "ShapeTensor":
        if self.shape[-1] != other.shape[0]:
            raise ValueError(f"cannot multiply {self.shape} by {other.shape}")
        shape = (*self.shape[:-1], *other.shape[1:])
        return ShapeTensor(shape, trained=self.trained or other.trained)

    def __mul__(self, other: object) -> "ShapeTensor":
        if isinstance(other, ShapeTensor):
            shape = _broadcast(self.shape, other.shape)
            return ShapeTensor(shape, trained=self.trained or other.trained)
        return ShapeTensor(self.shape, trained=self.trained)

    __rmul__ = __add__ = __radd__ = __sub__ = __rsub__ = __truediv__ = __pow__ = __mul__

    def __getitem__(self, index: object) -> "ShapeTensor":
        shape: list[int] = []
        rest = list(self.shape)
        for entry in index if isinstance(index, tuple) else (index,):
            if entry is None:
                shape.append(1)
            elif isinstance(entry, slice):
                shape.append(len(range(*entry.indices(rest.pop(0)))))
            else:
                raise TypeError(f"an update may index with slices and None, not {entry!r}")
        return ShapeTensor((*shape, *rest), trained=self.trained, shared=self.shared)

    def sum(self, axis: int) -> "ShapeTensor":
        shape = (*self.shape[:axis], *self.shape[axis + 1 :])
        return ShapeTensor(shape, trained=self.trained)

    def reshape(self, *shape: int) -> "ShapeTensor":
        if shape != (-1,):
            raise TypeError(f"an update may reshape to (-1,), not {shape}")
        return ShapeTensor((self.size,), trained=self.trained, shared=self.shared)

    def detach(self) -> "ShapeTensor":
        return ShapeTensor(self.shape, shared=self.shared)


def _broadcast(left: tuple[int, ...], right: tuple[int, ...]) -> tuple[int, ...]:
    if left == right:
        return left
    width = max(len(left), len(right))
    one = (1,) * (width - len(left)) + left
    two = (1,) * (width - len(right)) + right
    if any(a != b and 1 not in (a, b) for a, b in zip(one, two, strict=True)):
        raise ValueError(f"cannot broadcast {left} with {right}")
    return tuple(max(a, b) for a, b in zip(one, two, strict=True))


class SiteCost(NamedTuple):
    """Of one site: planner.method.Cost, and per tenant the bytes of its row in the bank and the
    multiplications that serving it takes; of `saved_elements` those that the base gave.
    """

    multiplications: int
    saved_elements: int
    row_bytes: int
    saves_input: bool
    served_multiplications: int
    pass_multiplications: int = 0
    pass_elements: int = 0
    workspace_elements: int = 0
    saved_outputs: int = 0


def linear_cost(method: Method, target: Target, dimensions: Dimensions) -> SiteCost:
    """Cost of the method on one linear, whose lengths `dimensions` holds."""
    declared = method.costs.get("target")
    if declared is not None:
        return declared_cost(method, declared(dimensions), dimensions)
    lengths = [t.resolve(dimensions) if _is_at(t, target) else () for t in method.tensors]
    return _traced_cost(method, target, tuple(lengths))


@lru_cache(maxsize=4096)
def _traced_cost(method: Method, target: Target, lengths: tuple[tuple[int, ...], ...]) -> SiteCost:
    """`lengths` are those of the method's tensors, in order."""
    multiplications = saved_elements = saved_outputs = row_bytes = 0
    saves_input = False
    for part in _trace(method, target, lengths):
        cost = _part_cost(part, target)
        multiplications += cost.multiplications
        saved_elements += cost.saved_elements
        saved_outputs += cost.saved_elements if isinstance(part, OutputScale) else 0
        row_bytes += cost.row_bytes
        saves_input = saves_input or cost.saves_input
    return SiteCost(
        multiplications,
        saved_elements,
        row_bytes,
        saves_input,
        multiplications,
        saved_outputs=saved_outputs,
    )


def declared_cost(method: Method, cost: Cost, dimensions: Dimensions) -> SiteCost:
    """A declared cost; what converts to a pair without loss is served as that pair."""
    multiplications, row = cost.multiplications, _vector(cost.row_elements or 0)
    conversion = method.converts_to
    if cost.row_elements is None and conversion is not None and conversion.exact:
        rank, out, in_ = conversion.rank(dimensions), dimensions["out"], dimensions["in"]
        multiplications, row = rank * (out + in_), _vector(rank * out) + _vector(rank * in_)
    return SiteCost(
        multiplications=cost.multiplications,
        saved_elements=cost.saved_elements,
        row_bytes=row,
        saves_input=cost.saves_input,
        served_multiplications=multiplications,
        pass_multiplications=cost.pass_multiplications,
        pass_elements=cost.pass_elements,
        workspace_elements=cost.workspace_elements,
    )


def _trace(method: Method, target: Target, lengths: tuple[tuple[int, ...], ...]) -> Update:
    """The update of that linear with ShapeTensors in place of tensors."""
    tensors = {
        spec.name: ShapeTensor(
            length,
            trained=spec.trainable,
            shared=spec.scope == "model" and not spec.trainable,
        )
        for spec, length in zip(method.tensors, lengths, strict=True)
        if _is_at(spec, target)
    }
    weight = ShapeTensor((target.out_features, target.in_features), trained=method.trains_base)
    return method.update(tensors, Site(target, weight, None, 1.0))


def _is_at(spec: TensorSpec, target: Target) -> bool:
    return spec.roles is None or target.role in spec.roles


class _PartCost(NamedTuple):
    multiplications: int
    saved_elements: int
    row_bytes: int
    saves_input: bool


def _part_cost(part: Part, target: Target) -> _PartCost:
    height, width = target.out_features, target.in_features
    match part:
        case LowRank():
            return _low_rank_cost(part)
        case OutputScale(scale=scale):
            # The gradient of the scale needs the output of the base.
            saved = height if scale.trained else 0
            return _PartCost(height, saved, _vector(height), saves_input=False)
        case InputScale(scale=scale):
            return _PartCost(width, 0, _vector(width), saves_input=scale.trained)
        case OutputShift():
            return _PartCost(height, 0, _vector(height), saves_input=False)
        case Dense(weight=weight):
            return _PartCost(0, 0, 0, saves_input=weight.trained)


def _low_rank_cost(part: LowRank) -> _PartCost:
    """x kept for A's gradient, A x for B's and d's, d A x for B's, B(...) for e's."""
    rank, width = part.a.shape
    height = part.b.shape[0]
    multiplications = rank * (width + height)
    saved = rank if part.b.trained or _trained(part.latent_scale) else 0
    if part.latent_scale is not None:
        multiplications += rank
        saved += rank if part.b.trained else 0
    if part.output_scale is not None:
        multiplications += height
        saved += height if _trained(part.output_scale) else 0
    return _PartCost(multiplications, saved, _pair_bytes(part), saves_input=part.a.trained)


def _trained(tensor: ShapeTensor | None) -> bool:
    return tensor is not None and tensor.trained


def _pair_bytes(part: LowRank) -> int:
    """The row holds A and B with their scales folded in, or only the scales of a shared pair."""
    if part.a.shared and part.b.shared:
        return sum(_vector(s.size) for s in (part.latent_scale, part.output_scale) if s is not None)
    return _vector(part.a.size) + _vector(part.b.size)


def _vector(count: int) -> int:
    """Bytes of that many floats in the bank, where every part is aligned."""
    return -(-count * FLOAT_BYTES // ALIGNMENT_BYTES) * ALIGNMENT_BYTES
