"""NF4 with double quantisation, bit for bit as bitsandbytes quantises on the CPU.

Code = the nearest of 16 levels to w / max|block| (a tie takes the lower level). The block maxima,
less their mean, are quantised again to an 8-bit dynamic map in blocks of 256 (QLoRA, Dettmers et
al., 2023, arXiv 2305.14314, section 3).
"""

from functools import cache

import torch

from compiler.quantized import BLOCK_SIZE, NESTED_BLOCK_SIZE, QuantizedWeight, scales
from planner.errors import IncompatibleError

NF4_LEVELS = (
    -1.0,
    -0.6961928009986877,
    -0.5250730514526367,
    -0.39491748809814453,
    -0.28444138169288635,
    -0.18477343022823334,
    -0.09105003625154495,
    0.0,
    0.07958029955625534,
    0.16093020141124725,
    0.24611230194568634,
    0.33791524171829224,
    0.44070982933044434,
    0.5626170039176941,
    0.7229568362236023,
    1.0,
)
SMALLEST_DIVISOR = 1e-38
CHUNK = 1 << 18
"""Weights per pass, a multiple of the block size: bounds the temporaries to 1 MiB each."""


def quantize(weight: torch.Tensor, *, double: bool = True) -> QuantizedWeight:
    """Quantises [out, in]; raises IncompatibleError when a value is not finite.

    The mean of the block maxima is a torch reduction: its last bit may depend on the thread count.
    """
    flat = weight.detach().cpu().reshape(-1)
    starts = range(0, flat.numel(), CHUNK)
    chunks = [_quantize_blocks(flat[start : start + CHUNK].float()) for start in starts]
    absmax = torch.cat([chunk_absmax for _, chunk_absmax in chunks])
    out_features, in_features = weight.shape
    quantized = QuantizedWeight(
        shape=(out_features, in_features),
        codes=torch.cat([codes for codes, _ in chunks]).numpy(),
        absmax=absmax.numpy(),
        codebook=_levels().numpy().copy(),
    )
    return _nest(quantized, absmax) if double else quantized


def dequantize(weight: QuantizedWeight) -> torch.Tensor:
    """The float32 weight [out, in]; compiler.quantized.dequantize is the same without torch."""
    codes = torch.from_numpy(weight.codes)
    level = torch.from_numpy(weight.codebook)
    pairs = torch.stack([level.repeat_interleave(16), level.repeat(16)], dim=1)
    count = weight.shape[0] * weight.shape[1]
    values = pairs.index_select(0, codes.int()).view(-1)[:count]
    per_block = torch.from_numpy(scales(weight))
    whole = count - count % weight.block_size
    blocks = values[:whole].view(-1, weight.block_size)
    blocks *= per_block[: len(blocks), None]
    values[whole:] *= per_block[len(blocks) :]
    return values.view(weight.shape)


def _quantize_blocks(flat: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Packed codes uint8 and block maxima float32; only the last block may be short."""
    whole = flat.numel() - flat.numel() % BLOCK_SIZE
    blocks = flat[:whole].view(-1, BLOCK_SIZE)
    absmax = blocks.abs().amax(dim=1)
    scaled = (blocks * (1.0 / absmax.clamp(min=SMALLEST_DIVISOR))[:, None]).view(-1)
    if whole < flat.numel():
        # The short block divides, and stores a maximum of at least 1e-38, where whole blocks
        # multiply by the reciprocal and store 0: the reference treats them so.
        last = flat[whole:].abs().amax().clamp(min=SMALLEST_DIVISOR)
        scaled = torch.cat([scaled, flat[whole:] / last])
        absmax = torch.cat([absmax, last[None]])
    if not bool(absmax.isfinite().all()):
        raise IncompatibleError("a weight to be quantised holds NaN or infinity")
    if scaled.numel() % 2:
        scaled = torch.nn.functional.pad(scaled, (0, 1))
    codes = _nearest(scaled.clamp_(-1, 1))
    return (codes[::2] << 4) | codes[1::2], absmax


def _nearest(unit: torch.Tensor) -> torch.Tensor:
    """The code uint8 of the level nearest to each value of [-1, 1].

    Midpoints of levels are 0.08 apart or more, so a cell of 1/16 holds at most one: a table of
    cells and one comparison give what a binary search gives, six times as fast.
    """
    lowest, midpoint = _cells()
    cell = ((unit + 1) * 16).int()
    return lowest.index_select(0, cell) + (unit > midpoint.index_select(0, cell))


def _nest(quantized: QuantizedWeight, absmax: torch.Tensor) -> QuantizedWeight:
    offset = absmax.mean()
    codes, nested_absmax = _quantize_dynamic(absmax - offset)
    return QuantizedWeight(
        shape=quantized.shape,
        codes=quantized.codes,
        absmax=codes.numpy(),
        codebook=quantized.codebook,
        nested_absmax=nested_absmax.numpy(),
        nested_codebook=_dynamic_map().numpy().copy(),
        offset=offset.view(1).numpy(),
    )


def _quantize_dynamic(values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Codes uint8 of the dynamic map and maxima float32, in blocks of 256.

    The reference looks codes up in a table over 65,536 steps of [-1, 1], which is not always the
    nearest code; an all-zero block gets code 0.
    """
    padding = -values.numel() % NESTED_BLOCK_SIZE
    blocks = torch.nn.functional.pad(values, (0, padding)).view(-1, NESTED_BLOCK_SIZE)
    absmax = blocks.abs().amax(dim=1)
    unit = (blocks * (1.0 / absmax)[:, None]).clamp(-1, 1)
    # The reference fuses the multiply-add; float64 holds it exactly, to be rounded once.
    step = ((unit + 1).double() * 0.5 * 65535 + 0.5).float()
    index = torch.where(absmax[:, None] > 0, step, 0).nan_to_num(0).int()
    return _dynamic_table()[index].view(-1)[: values.numel()], absmax


@cache
def _levels() -> torch.Tensor:
    return torch.tensor(NF4_LEVELS)


@cache
def _cells() -> tuple[torch.Tensor, torch.Tensor]:
    """Of each cell [i / 16 - 1, (i + 1) / 16 - 1): its lowest code, and where the next begins."""
    levels = _levels()
    midpoints = (levels[:-1] + levels[1:]) / 2
    lowest = torch.bucketize(torch.arange(33) / 16 - 1, midpoints)
    return lowest.to(torch.uint8), torch.cat([midpoints, torch.ones(1)])[lowest]


@cache
def _dynamic_map() -> torch.Tensor:
    """256 signed values: for e = 0..6, the midpoints of 2^e equal parts of [0.1, 1] times 10^(e-6).

    Dettmers et al., 2022, arXiv 2110.02861, section 2.2; the zero and 1 complete it.
    """
    values = [0.0, 1.0]
    for exponent in range(7):
        edges = torch.linspace(0.1, 1, 2**exponent + 1)
        middles = 10.0 ** (exponent - 6) * ((edges[:-1] + edges[1:]) / 2.0)
        values += middles.tolist() + (-middles).tolist()
    return torch.tensor(sorted(values))


@cache
def _dynamic_table() -> torch.Tensor:
    """The code of each of 65,536 steps from -1 to 1."""
    levels = _dynamic_map()
    steps = -1.0 + (2.0 * torch.arange(65536)) / 65535
    return torch.bucketize(steps, 0.5 * (levels[:-1] + levels[1:])).to(torch.uint8)
