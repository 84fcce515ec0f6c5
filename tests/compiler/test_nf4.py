"""NF4 against bitsandbytes on the CPU: the same bits, and the same values back."""

import numpy as np
import pytest
import torch
from bitsandbytes import functional as bitsandbytes

from compiler import nf4, quantized
from compiler.quantized import arrays, from_arrays
from planner.errors import IncompatibleError


def reference(weight, *, double=True):
    codes, state = bitsandbytes.quantize_4bit(weight, quant_type="nf4", compress_statistics=double)
    found = {"codes": codes.reshape(-1), "absmax": state.absmax, "codebook": state.code}
    if double:
        found |= {
            "nested_absmax": state.state2.absmax,
            "nested_codebook": state.state2.code,
            "offset": state.offset.reshape(1),
        }
    return {name: value.numpy() for name, value in found.items()}


def random_weight(seed):
    """Shapes of odd and even, short and long rows; magnitudes over 60 decades; blocks of zeros."""
    random = torch.Generator().manual_seed(seed)

    def integer(low, high):
        return int(torch.randint(low, high, (1,), generator=random))

    shape = (integer(1, 260), integer(1, 260))
    weight = torch.randn(shape, generator=random) * 10.0 ** integer(-30, 30)
    flat = weight.view(-1)
    kind = seed % 5
    if kind == 1:
        flat[: flat.numel() // 2] = 0
    elif kind == 2:
        flat[torch.rand(flat.numel(), generator=random) < 0.9] = 0
    elif kind == 3:
        flat[::7] *= 1e6
    elif kind == 4:
        flat[:] = flat.sign() * flat.abs().max()
    dtypes = (torch.float32, torch.float32, torch.bfloat16, torch.float16)
    return (weight if seed % 4 < 3 else weight.clamp(-6e4, 6e4)).to(dtypes[seed % 4])


def assert_same_bits(weight, *, double):
    found, expected = arrays(nf4.quantize(weight, double=double)), reference(weight, double=double)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name].dtype == value.dtype
        assert found[name].tobytes() == value.tobytes(), name


@pytest.mark.parametrize("seed", range(100))
def test_random_matrices_have_the_bits_of_bitsandbytes(seed):
    assert_same_bits(random_weight(seed), double=True)


@pytest.mark.parametrize(
    "weight",
    [
        torch.zeros(64, 64),
        torch.zeros(3, 5),
        torch.zeros(1, 1),
        torch.full((1, 1), -3.0),
        torch.full((9, 9), 3.4e38),
        torch.full((16, 64), 1e-45),
        torch.linspace(-1, 1, 263 * 1001).view(263, 1001),
        torch.eye(130),
        -torch.eye(130),
    ],
    ids=lambda w: f"{list(w.shape)} {w.sum().item():.3g}",
)
@pytest.mark.parametrize("double", [True, False])
def test_extremes_have_the_bits_of_bitsandbytes(weight, double):
    assert_same_bits(weight, double=double)


def test_every_value_near_a_decision_has_the_bits_of_bitsandbytes():
    """Midpoints, levels and the edges of the lookup cells, each with its two float neighbours."""
    levels = torch.tensor(nf4.NF4_LEVELS)
    points = torch.cat([levels, (levels[:-1] + levels[1:]) / 2, torch.arange(33) / 16 - 1])
    near = [torch.nextafter(points, torch.tensor(way)) for way in (-2.0, 2.0)]
    values = torch.cat([points, *near]).clamp(-1, 1)
    # A 1 in each block makes the scale 1, so that the values are compared as they are.
    blocks = torch.nn.functional.pad(values, (0, -len(values) % 63)).view(-1, 63)
    weight = torch.cat([blocks, torch.ones(len(blocks), 1)], dim=1)
    assert_same_bits(weight, double=False)


@pytest.mark.parametrize("largest", [1.1, 1.7, 3.0, 5.3, 7.0])
def test_a_short_block_divides_where_a_whole_one_multiplies(largest):
    """Midpoints times the maximum, and their neighbours: the two ways round a few apart."""
    levels = torch.tensor(nf4.NF4_LEVELS)
    points = (levels[:-1] + levels[1:]) / 2 * torch.tensor(largest)
    near = [torch.nextafter(points, torch.tensor(way)) for way in (-9.0, 9.0)]
    assert_same_bits(torch.cat([torch.tensor([largest]), points, *near])[None], double=False)


def test_the_dynamic_map_has_the_codes_of_bitsandbytes_at_every_step():
    steps = (torch.arange(65536, dtype=torch.float64) / 65535 * 2 - 1).float().view(-1, 128)
    values = torch.cat([steps, torch.ones(len(steps), 128)], dim=1).view(-1)
    codes, absmax = nf4._quantize_dynamic(values)
    expected, state = bitsandbytes.quantize_blockwise(values, blocksize=256)
    assert torch.equal(codes, expected)
    assert torch.equal(absmax, state.absmax)


@pytest.mark.parametrize("shape", [(64, 64), (5, 128), (300, 576)])
def test_dequantised_values_are_those_of_bitsandbytes(shape):
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(3))
    codes, state = bitsandbytes.quantize_4bit(weight, quant_type="nf4", compress_statistics=True)
    expected = bitsandbytes.dequantize_4bit(codes, state)
    assert torch.equal(nf4.dequantize(nf4.quantize(weight)), expected)


@pytest.mark.parametrize("shape", [(1, 1), (3, 5), (7, 80), (65, 63), (64, 64)])
@pytest.mark.parametrize("double", [True, False])
def test_blocks_run_over_the_flat_weight(shape, double):
    """The formula of the layout, one weight at a time, against both fast ways."""
    weight = nf4.quantize(
        torch.randn(shape, generator=torch.Generator().manual_seed(4)), double=double
    )
    scales = quantized.scales(weight)
    expected = np.empty(shape, np.float32)
    for i in range(expected.size):
        byte = weight.codes[i // 2]
        code = byte >> 4 if i % 2 == 0 else byte & 15
        expected.flat[i] = weight.codebook[code] * scales[i // 64]
    assert np.array_equal(quantized.dequantize(weight), expected)
    assert np.array_equal(nf4.dequantize(weight).numpy(), expected)


def test_the_error_is_that_of_four_bits():
    """0.0926 of a Gaussian's size is published for NF4; 1 % of it is noise at 2^18 draws."""
    weight = torch.randn(512, 512, generator=torch.Generator().manual_seed(5))
    error = (nf4.dequantize(nf4.quantize(weight)) - weight).norm() / weight.norm()
    assert error.item() == pytest.approx(0.0926, rel=0.01)


def test_a_weight_survives_its_arrays():
    weight = nf4.quantize(torch.randn(7, 80, generator=torch.Generator().manual_seed(6)))
    again = from_arrays(arrays(weight), weight.shape)
    assert np.array_equal(quantized.dequantize(again), quantized.dequantize(weight))
    assert weight.bytes == 280 + 9 + 64 + 4 + 1024 + 4


def test_arrays_of_another_shape_are_refused():
    weight = nf4.quantize(torch.ones(7, 80))
    with pytest.raises(IncompatibleError, match=r"4-bit weight of shape \[7, 82\]"):
        from_arrays(arrays(weight), (7, 82))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_weight_that_is_not_finite_is_refused(value):
    weight = torch.ones(3, 70)
    weight[1, 2] = value
    with pytest.raises(IncompatibleError, match="holds NaN or infinity"):
        nf4.quantize(weight)
