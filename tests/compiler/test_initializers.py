import peft
import pytest
import torch
from torch import nn

from compiler.initializers import initialize
from planner.method import Target, buildable, method, model_dimensions, target_dimensions
from planner.update import row_norm

TARGETS = (
    Target("layers.0.q", "attention.query", 24, 16),
    Target("layers.0.v", "attention.value", 8, 16),
    Target("layers.0.down", "mlp.down", 16, 40),
)


def weight(name: str) -> torch.Tensor:
    target = next(t for t in TARGETS if t.name == name)
    generator = torch.Generator().manual_seed(len(name))
    return torch.randn(target.out_features, target.in_features, generator=generator)


def start(
    name: str, rank: int | None, *, seed: int = 5, targets: tuple[Target, ...] = TARGETS
) -> dict[str, torch.Tensor]:
    return initialize(method(name), targets, weight, rank, scaling=0.5, seed=seed)


class Model(nn.Module):
    """The targets as a module that PEFT can adapt."""

    def __init__(self) -> None:
        super().__init__()
        layers = {}
        for target in TARGETS:
            layer = nn.Linear(target.in_features, target.out_features, bias=False)
            layer.weight = nn.Parameter(weight(target.name))
            layers[target.name.rpartition(".")[2]] = layer
        self.layers = nn.ModuleList([nn.ModuleDict(layers)])


@pytest.mark.parametrize("name", sorted(buildable()))
def test_every_declared_tensor_starts_with_its_declared_shape(name: str) -> None:
    declared = method(name)
    rank = 4 if declared.ranks else None
    limits = model_dimensions(TARGETS)
    expected = {
        f"{target.name}.{spec.name}": spec.resolve(target_dimensions(target, rank) | limits)
        for target in TARGETS
        for spec in declared.tensors_for(target.role)
    }
    for spec in declared.model_tensors():
        expected[spec.name] = spec.resolve({"rank": rank or 0} | limits)
    tensors = start(name, rank)
    assert {key: tuple(tensor.shape) for key, tensor in tensors.items()} == expected
    assert {tensor.dtype for tensor in tensors.values()} <= {torch.float32}


def test_a_tensor_depends_on_seed_and_name_alone() -> None:
    every = start("lora", 4)
    assert torch.equal(
        start("lora", 4, targets=TARGETS[1:])["layers.0.v.lora_A"], every["layers.0.v.lora_A"]
    )
    assert not torch.equal(
        start("lora", 4, seed=6)["layers.0.v.lora_A"], every["layers.0.v.lora_A"]
    )
    assert not torch.equal(every["layers.0.q.lora_A"], every["layers.0.v.lora_A"])


def test_lora_starts_as_pefts_does() -> None:
    """U(-1/sqrt(in), 1/sqrt(in)) for A, which PEFT draws by kaiming_uniform_(a=sqrt(5)); B zero."""
    wide = (Target("wide", "attention.query", 8, 400),)
    a = initialize(method("lora"), wide, weight, 64, 1.0, 0)["wide.lora_A"]
    reference = nn.init.kaiming_uniform_(
        torch.empty(64, 400), a=5**0.5, generator=torch.Generator().manual_seed(0)
    )
    bound = 400**-0.5
    assert 0.999 * bound < float(a.abs().max()) <= bound
    # 25,600 draws of standard deviation bound / sqrt(3): the sample's is within 1 % at 3 sigma.
    assert float(a.std()) == pytest.approx(float(reference.std()), rel=0.01)
    assert float(a.std()) == pytest.approx(bound / 3**0.5, rel=0.01)
    assert abs(float(a.mean())) < 3 * bound / 3**0.5 / 25_600**0.5
    assert not start("lora", 4)["layers.0.q.lora_B"].any()


def test_dora_starts_with_a_scale_of_exactly_one() -> None:
    tensors, w = start("dora", 4), weight("layers.0.q")
    magnitude = tensors["layers.0.q.lora_magnitude_vector"]
    torch.testing.assert_close(magnitude, torch.linalg.vector_norm(w, dim=1))
    norm = row_norm(w, tensors["layers.0.q.lora_A"], tensors["layers.0.q.lora_B"])
    assert torch.equal(magnitude / norm, torch.ones(24))


def test_vera_projections_are_pefts_bit_for_bit() -> None:
    config = peft.VeraConfig(r=8, projection_prng_key=5, target_modules=["q", "v", "down"])
    theirs = peft.get_peft_model(Model(), config).base_model
    ours = start("vera", 8)
    assert torch.equal(ours["vera_A"], theirs.vera_A["default"])
    assert torch.equal(ours["vera_B"], theirs.vera_B["default"])
    for name in ("vera_lambda_d", "vera_lambda_b"):
        theirs_of_q = getattr(theirs.model.layers[0]["q"], name)["default"]
        assert torch.equal(ours[f"layers.0.q.{name}"], theirs_of_q)


def test_pissa_pairs_are_pefts_up_to_sign() -> None:
    config = peft.LoraConfig(
        r=4, lora_alpha=2, init_lora_weights="pissa", target_modules=["q", "v", "down"]
    )
    layers = peft.get_peft_model(Model(), config).base_model.model.layers[0]
    ours = start("pissa", 4)
    for target in TARGETS:
        theirs = layers[target.name.rpartition(".")[2]]
        a, b = ours[f"{target.name}.lora_A"], ours[f"{target.name}.lora_B"]
        their_a = theirs.lora_A["default"].weight.detach()
        their_b = theirs.lora_B["default"].weight.detach()
        sign = (a * their_a).sum(1).sign()
        # PEFT's fp32 SVD turns a direction by up to 2^-24 * 10 / gap, with gaps down to 0.1.
        torch.testing.assert_close(sign[:, None] * a, their_a, rtol=0.0, atol=1e-4)
        torch.testing.assert_close(b * sign, their_b, rtol=0.0, atol=1e-4)


def test_pissa_has_one_sign_and_keeps_its_start() -> None:
    tensors = start("pissa", 4)
    a = tensors["layers.0.down.lora_A"]
    assert (a.gather(1, a.abs().argmax(1, keepdim=True)) > 0).all()
    for side in ("A", "B"):
        trained, initial = (tensors[f"layers.0.down.{kind}_{side}"] for kind in ("lora", "initial"))
        assert torch.equal(trained, initial)
        assert trained.data_ptr() != initial.data_ptr()


def test_pissa_of_full_rank_is_the_weight_and_more_rank_is_zero() -> None:
    tensors = start("pissa", 12)  # the value projection has 8 outputs
    a, b = tensors["layers.0.v.lora_A"], tensors["layers.0.v.lora_B"]
    torch.testing.assert_close(0.5 * b @ a, weight("layers.0.v"), rtol=0.0, atol=1e-5)
    assert not a[8:].any()
    assert not b[:, 8:].any()


def test_pissa_of_a_zero_weight_is_zero() -> None:
    target = (Target("z", "attention.query", 6, 4),)
    tensors = initialize(method("pissa"), target, lambda _: torch.zeros(6, 4), 2, 1.0, 0)
    assert all(not tensor.any() for tensor in tensors.values())


def test_a_weight_is_read_once_and_only_where_a_rule_asks() -> None:
    read: list[str] = []

    def recorded(name: str) -> torch.Tensor:
        read.append(name)
        return weight(name)

    initialize(method("pissa"), TARGETS, recorded, 4, 1.0, 0)
    assert read == [target.name for target in TARGETS]
    initialize(method("lora"), TARGETS, recorded, 4, 1.0, 0)
    assert len(read) == len(TARGETS)
