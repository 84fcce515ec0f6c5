"""The graph with a bank: the base model, tenants of several methods, every weight format."""

from pathlib import Path
from types import ModuleType

import numpy as np
import onnx
import pytest
import torch

from compiler import nf4
from compiler.export.attach_weights import Weight
from compiler.export.unmerged import write_unmerged
from planner.errors import IncompatibleError
from planner.method import Target

TOLERANCE = 1e-4


def state_of(captured) -> dict[str, Weight]:
    return dict(captured.model.state_dict())


def torch_logits(captured, prompt, **changed: torch.Tensor):
    values = {name: changed.get(name, value) for name, value in state_of(captured).items()}
    ids = torch.from_numpy(prompt)
    call = torch.func.functional_call
    return call(captured.model, values, (ids,), tie_weights=False).logits.numpy()


@pytest.fixture(scope="module")
def folder(llama, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("unmerged")
    write_unmerged(llama.skeleton, state_of(llama), llama.sites, out, precision="exact")
    return out


def test_empty_bank_is_the_base_model(llama, folder: Path, kit: ModuleType, prompt) -> None:
    bank = kit.bank_of(llama, {})
    logits, _ = kit.step(kit.load(folder), prompt, np.ones_like(prompt), bank=bank)
    np.testing.assert_allclose(logits, torch_logits(llama, prompt), atol=TOLERANCE)


def test_tenants_mix_in_one_batch(llama, folder: Path, kit: ModuleType, prompt) -> None:
    tenants = {
        "acme": kit.random_adapter("lora", llama, rank=4, seed=1),
        "zeta": kit.random_adapter("dora", llama, rank=8, seed=2),
    }
    bank, engine = kit.bank_of(llama, tenants), kit.load(folder)
    mask = np.ones_like(prompt)
    mixed, _ = kit.step(engine, prompt, mask, bank=bank, tenants=["acme", "base", "zeta"])
    for row, name in enumerate(["acme", "base", "zeta"]):
        alone, _ = kit.step(engine, prompt[row : row + 1], mask[:1], bank=bank, tenants=[name])
        np.testing.assert_allclose(mixed[row], alone[0], atol=1e-5)
    assert np.abs(mixed[0] - torch_logits(llama, prompt)[0]).max() > 0.1


def test_checker_knows_every_node(folder: Path) -> None:
    onnx.checker.check_model(folder / "model.onnx", full_check=True)


def test_sites_and_names(llama, folder: Path) -> None:
    graph = onnx.load(folder / "model.onnx", load_external_data=False).graph
    fused = {node.name: node for node in graph.node if node.op_type == "QuantLowRankMatMul"}
    assert list(fused) == [*(site.name for site in llama.sites), "lm_head"]
    for index, site in enumerate(llama.sites):
        node = fused[site.name]
        assert {a.name: a.s if a.type == a.STRING else a.i for a in node.attribute} == {
            "out_features": site.out_features,
            "in_features": site.in_features,
            "block_size": 64,
            "precision": b"exact",
            "site": index,
        }
        assert node.input[1] == f"{site.name}.weight"
        assert list(node.input[8:]) == ["bank", "slot"]
    assert list(fused["lm_head"].input)[1:] == ["model.embed_tokens.weight"]


def test_tied_weights_are_written_once(llama, tmp_path: Path) -> None:
    stored = write_unmerged(
        llama.skeleton, state_of(llama), llama.sites, tmp_path, precision="exact"
    )
    unique = {tensor.data_ptr(): tensor.nbytes for tensor in state_of(llama).values()}
    assert sum(array.length_bytes for array in stored.values()) == sum(unique.values())
    assert "lm_head.weight" not in stored


def test_locations_are_where_the_numbers_are(llama, tmp_path: Path) -> None:
    stored = write_unmerged(
        llama.skeleton, state_of(llama), llama.sites, tmp_path, precision="exact"
    )
    data = (tmp_path / "model.onnx.data").read_bytes()
    for name, array in stored.items():
        assert array.offset_bytes % 64 == 0
        part = data[array.offset_bytes : array.offset_bytes + array.length_bytes]
        values = np.frombuffer(part, "<f4").reshape(array.shape)
        np.testing.assert_array_equal(values, llama.model.state_dict()[name].numpy())


def test_same_bytes_again(llama, folder: Path, tmp_path: Path) -> None:
    write_unmerged(llama.skeleton, state_of(llama), llama.sites, tmp_path, precision="exact")
    for name in ("model.onnx", "model.onnx.data"):
        assert (tmp_path / name).read_bytes() == (folder / name).read_bytes()


def quantized(captured) -> tuple[dict[str, Weight], dict[str, torch.Tensor]]:
    """The sites' weights in 4 bits, and what these bits mean."""
    codes = {
        f"{site.name}.weight": nf4.quantize(captured.model.get_parameter(f"{site.name}.weight"))
        for site in captured.sites
    }
    return state_of(captured) | codes, {name: nf4.dequantize(q) for name, q in codes.items()}


def test_nf4_is_the_dequantized_model(llama, kit: ModuleType, prompt, tmp_path: Path) -> None:
    weights, dense = quantized(llama)
    stored = write_unmerged(llama.skeleton, weights, llama.sites, tmp_path, precision="exact")
    first = llama.sites[0].name
    assert {name.removeprefix(f"{first}.weight.") for name in stored if name.startswith(first)} == {
        "codes", "absmax", "codebook", "nested_absmax", "nested_codebook", "offset",
    }  # fmt: skip
    bank = kit.bank_of(llama, {})
    logits, _ = kit.step(kit.load(tmp_path), prompt, np.ones_like(prompt), bank=bank)
    np.testing.assert_allclose(logits, torch_logits(llama, prompt, **dense), atol=TOLERANCE)


def test_fast_is_said_of_4_bit_weights_only(llama, tmp_path: Path) -> None:
    weights, _ = quantized(llama)
    write_unmerged(llama.skeleton, weights, llama.sites, tmp_path, precision="fast")
    graph = onnx.load(tmp_path / "model.onnx", load_external_data=False).graph
    precisions = {
        node.name: next(a.s for a in node.attribute if a.name == "precision")
        for node in graph.node
        if node.op_type == "QuantLowRankMatMul"
    }
    assert {n for n, precision in precisions.items() if precision == b"exact"} == {"lm_head"}


def test_bfloat16_is_the_rounded_model(llama, kit: ModuleType, prompt, tmp_path: Path) -> None:
    weights = {name: tensor.bfloat16() for name, tensor in state_of(llama).items()}
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"]
    stored = write_unmerged(llama.skeleton, weights, llama.sites, tmp_path, precision="exact")
    assert stored["model.embed_tokens.weight"].dtype == "bfloat16"
    assert stored["model.norm.weight"].dtype == "float32"
    dense = {name: tensor.float() for name, tensor in weights.items()}
    bank = kit.bank_of(llama, {})
    logits, _ = kit.step(kit.load(tmp_path), prompt, np.ones_like(prompt), bank=bank)
    np.testing.assert_allclose(logits, torch_logits(llama, prompt, **dense), atol=TOLERANCE)


def test_a_tied_head_given_apart_is_stored_apart(
    llama, kit: ModuleType, prompt, tmp_path: Path
) -> None:
    head = torch.randn(kit.VOCABULARY, 64, generator=torch.manual_seed(0))
    weights = state_of(llama) | {"lm_head.weight": head}
    write_unmerged(llama.skeleton, weights, (), tmp_path, precision="exact")
    logits, _ = kit.step(kit.load(tmp_path), prompt, np.ones_like(prompt))
    hidden = llama.model.model(torch.from_numpy(prompt)).last_hidden_state
    np.testing.assert_allclose(logits, (hidden @ head.T).numpy(), atol=TOLERANCE)


def test_any_module_serves_tenants(scorer, kit: ModuleType, tmp_path: Path) -> None:
    write_unmerged(scorer.skeleton, state_of(scorer), scorer.sites, tmp_path, precision="exact")
    adapter = kit.random_adapter("lora", scorer, rank=2, seed=3)
    bank = kit.bank_of(scorer, {"acme": adapter})
    x = np.random.default_rng(0).normal(size=(2, 3, 24)).astype(np.float32)
    feeds = {"x": x, "bank": bank.array, "slot": np.array([0, 1])}
    scores = kit.load(tmp_path).run(feeds, ("scores",))["scores"].numpy()
    values = state_of(scorer)
    changed = {
        f"{name}.weight": values[f"{name}.weight"]
        + 2
        * torch.from_numpy(adapter.tensors[f"{name}.lora_B"] @ adapter.tensors[f"{name}.lora_A"])
        for name in ("first", "second")
    }
    for row, state in enumerate((values, values | changed)):
        expected = torch.func.functional_call(scorer.model, state, (torch.from_numpy(x),))[row]
        np.testing.assert_allclose(scores[row], expected.numpy(), atol=TOLERANCE)


def test_missing_weight(llama, tmp_path: Path) -> None:
    weights = state_of(llama)
    del weights["model.norm.weight"]
    with pytest.raises(IncompatibleError, match=r"no weight is given for .* 'model.norm.weight'"):
        write_unmerged(llama.skeleton, weights, (), tmp_path, precision="exact")


def test_weight_of_another_shape(llama, tmp_path: Path) -> None:
    weights = state_of(llama) | {"model.layers.0.mlp.up_proj.weight": torch.zeros(3, 4)}
    with pytest.raises(IncompatibleError, match=r"is \[3, 4\], not \[96, 64\]"):
        write_unmerged(llama.skeleton, weights, (), tmp_path, precision="exact")


def test_4_bit_embedding(llama, tmp_path: Path) -> None:
    codes = nf4.quantize(llama.model.model.embed_tokens.weight)
    weights = state_of(llama) | dict.fromkeys(
        ("model.embed_tokens.weight", "lm_head.weight"), codes
    )
    with pytest.raises(IncompatibleError, match="takes no 4-bit weight"):
        write_unmerged(llama.skeleton, weights, (), tmp_path, precision="exact")


@pytest.mark.parametrize(
    ("site", "message"),
    [
        (Target("model.layers.9.mlp.up_proj", "mlp.up", 96, 64), "has no linear 'model.layers.9"),
        (Target("model.layers.0.mlp.up_proj", "mlp.up", 64, 96), r"is \[96, 64\] in the inference"),
    ],
)
def test_site_that_the_graph_has_not(llama, tmp_path: Path, site: Target, message: str) -> None:
    with pytest.raises(IncompatibleError, match=message):
        write_unmerged(llama.skeleton, state_of(llama), (site,), tmp_path, precision="exact")
