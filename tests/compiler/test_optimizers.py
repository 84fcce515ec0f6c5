import pytest
import safetensors.torch
import torch

from compiler.optimizers import (
    build,
    export_state,
    groups,
    import_state,
    set_learning_rate,
)
from compiler.optimizers.paged_adamw8bit import paged
from planner.errors import ParetuneError
from planner.method import method

Parameters = dict[str, torch.nn.Parameter]


def parameters(seed: int = 0) -> Parameters:
    generator = torch.Generator().manual_seed(seed)
    shapes = {"x.lora_A": (2, 6), "x.lora_B": (5, 2), "x.magnitude": (5,), "x.scale": (5, 1)}
    return {
        name: torch.nn.Parameter(torch.randn(shape, generator=generator))
        for name, shape in shapes.items()
    }


def give_gradients(named: Parameters, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for parameter in named.values():
        parameter.grad = torch.randn(parameter.shape, generator=generator)


def silent(text: str) -> None:
    pass


def test_lora_plus_gives_b_its_own_rate() -> None:
    declared = {s.name: s.learning_rate_multiplier for s in method("lora_plus").tensors}
    named = parameters()
    multipliers = {"x.lora_B": declared["lora_B"]}
    optimizer = build("adamw", named, multipliers, weight_decay=0.0, say=silent)
    set_learning_rate(optimizer, 1e-3)
    rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    assert rates[id(named["x.lora_B"])] == pytest.approx(16e-3)
    assert rates[id(named["x.lora_A"])] == pytest.approx(1e-3)


def test_only_matrices_decay() -> None:
    named = parameters()
    decays = {
        id(p): group["weight_decay"]
        for group in groups(named, {}, weight_decay=0.1)
        for p in group["params"]
    }
    assert {name: decays[id(p)] for name, p in named.items()} == {
        "x.lora_A": 0.1,
        "x.lora_B": 0.1,
        "x.magnitude": 0.0,
        "x.scale": 0.0,
    }


def test_a_step_is_adamw() -> None:
    """First step: both moments are the gradient's, so the update is lr * sign(g) and the decay."""
    named = parameters()
    give_gradients(named, 1)
    before = named["x.lora_A"].detach().clone()
    optimizer = build("adamw", named, {}, weight_decay=0.5, say=silent)
    set_learning_rate(optimizer, 0.01)
    optimizer.step()
    gradient = named["x.lora_A"].grad
    assert gradient is not None
    expected = before * (1 - 0.01 * 0.5) - 0.01 * gradient.sign()
    # eps = 1e-8 beside gradients of about 1.
    torch.testing.assert_close(named["x.lora_A"].detach(), expected, rtol=0.0, atol=1e-6)


def test_state_survives_export_and_import_bit_for_bit() -> None:
    one, two = parameters(), parameters()
    first = build("adamw", one, {}, weight_decay=0.1, say=silent)
    second = build("adamw", two, {}, weight_decay=0.1, say=silent)
    for optimizer in (first, second):
        set_learning_rate(optimizer, 0.01)
    give_gradients(one, 1)
    first.step()
    state = export_state(first, one)
    assert sorted(state)[:3] == ["x.lora_A/exp_avg", "x.lora_A/exp_avg_sq", "x.lora_A/step"]
    with torch.no_grad():
        for name, parameter in two.items():
            parameter.copy_(one[name])
    import_state(second, two, state.items())
    give_gradients(one, 2)
    give_gradients(two, 2)
    first.step()
    second.step()
    assert all(torch.equal(one[name], two[name]) for name in one)


@pytest.mark.filterwarnings("ignore:Paged optimizers are not supported on CPU")
def test_8bit_states_survive_export_and_import_bit_for_bit() -> None:
    """bitsandbytes' own CPU path stands in for CUDA; its states share one code table."""
    runs = []
    for _ in range(2):
        generator = torch.Generator().manual_seed(0)
        matrix = torch.nn.Parameter(torch.randn(128, 64, generator=generator))
        named = {"x.wide": matrix, "x.more": torch.nn.Parameter(matrix.detach().clone())}
        runs.append((named, paged(groups(named, {}, weight_decay=0.0))))
        set_learning_rate(runs[-1][1], 0.01)
    (one, first), (two, second) = runs
    give_gradients(one, 1)
    first.step()
    stored = safetensors.torch.load(safetensors.torch.save(export_state(first, one)))
    assert stored["x.wide/state1"].dtype == torch.uint8
    with torch.no_grad():
        for name, parameter in two.items():
            parameter.copy_(one[name])
    import_state(second, two, stored.items())
    for named, optimizer in runs:
        give_gradients(named, 2)
        optimizer.step()
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_the_paged_optimizer_is_plain_adamw_without_cuda_and_says_so() -> None:
    one, two, said = parameters(), parameters(), []
    plain = build("adamw", one, {}, weight_decay=0.0, say=silent)
    paged = build("paged_adamw8bit", two, {}, weight_decay=0.0, say=said.append)
    for optimizer, named in ((plain, one), (paged, two)):
        set_learning_rate(optimizer, 0.01)
        give_gradients(named, 1)
        optimizer.step()
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert said == ["paged_adamw8bit needs CUDA; training on cpu with plain AdamW instead"]


def test_an_unknown_optimizer_is_named_with_the_known_ones() -> None:
    with pytest.raises(ParetuneError, match="'sgd'; optimizers are adamw, paged_adamw8bit"):
        build("sgd", parameters(), {}, weight_decay=0.0, say=silent)
