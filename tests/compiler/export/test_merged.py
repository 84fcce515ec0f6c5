"""One tenant folded in: the same answers as through the bank, without one."""

from pathlib import Path
from types import ModuleType

import numpy as np
import onnx
import pytest
import torch

from compiler import nf4
from compiler.adapter import uniform
from compiler.export.merged import write_merged
from compiler.export.unmerged import write_unmerged

TOLERANCE = 1e-4


@pytest.mark.parametrize(("kind", "rank"), [("lora", 4), ("dora", 4), ("ia3", None)])
def test_merged_equals_unmerged(
    llama, kit: ModuleType, prompt, tmp_path: Path, kind: str, rank: int | None
) -> None:
    adapter = kit.random_adapter(kind, llama, rank=rank, seed=1)
    state, mask = llama.model.state_dict(), np.ones_like(prompt)
    write_unmerged(llama.skeleton, state, llama.sites, tmp_path, precision="exact")
    bank = kit.bank_of(llama, {"acme": adapter})
    through_bank, _ = kit.step(
        kit.load(tmp_path), prompt, mask, bank=bank, tenants=["acme"] * len(prompt)
    )
    merged = write_merged(llama.skeleton, state, adapter, tmp_path, precision="exact")
    folded, _ = kit.step(kit.load(tmp_path), prompt, mask)
    np.testing.assert_allclose(folded, through_bank, atol=TOLERANCE * np.abs(folded).max())
    assert merged.drift == {}


def test_no_bank_is_asked_for(llama, kit: ModuleType, tmp_path: Path) -> None:
    adapter = kit.random_adapter("lora", llama, rank=4, seed=1)
    write_merged(llama.skeleton, llama.model.state_dict(), adapter, tmp_path, precision="exact")
    onnx.checker.check_model(tmp_path / "model.onnx")
    graph = onnx.load(tmp_path / "model.onnx", load_external_data=False).graph
    assert not {value.name for value in graph.input} & {"bank", "slot"}


def test_folded_4_bit_weights_are_quantized_again(llama, kit: ModuleType, tmp_path: Path) -> None:
    adapter = kit.random_adapter("lora", llama, rank=4, seed=1)
    name = f"{llama.sites[0].name}.weight"
    weights = dict(llama.model.state_dict())
    weights[name] = nf4.quantize(weights[name])
    merged = write_merged(llama.skeleton, weights, adapter, tmp_path, precision="exact")
    assert f"{name}.codes" in merged.stored
    a, b = (
        torch.from_numpy(adapter.tensors[f"{llama.sites[0].name}.{n}"])
        for n in ("lora_A", "lora_B")
    )
    folded = nf4.dequantize(weights[name]) + 2 * b @ a
    drift = float((nf4.dequantize(nf4.quantize(folded)) - folded).norm() / folded.norm())
    assert merged.drift == {name: pytest.approx(drift, rel=1e-3)}
    assert 0.01 < drift < 0.2


def test_full_fine_tuning_replaces_every_weight(
    llama, kit: ModuleType, prompt, tmp_path: Path
) -> None:
    """The tied weight is trained under one of its names and changes under both."""
    state = dict(llama.model.state_dict())
    tuned = {n: t * 1.1 for n, t in state.items() if n != "lm_head.weight"}
    adapter = uniform(
        method="full",
        rank=None,
        alpha=None,
        targets=llama.sites,
        tensors={name: tensor.numpy() for name, tensor in tuned.items()},
        base_digest="b" * 64,
    )
    merged = write_merged(llama.skeleton, state, adapter, tmp_path, precision="exact")
    assert "lm_head.weight" not in merged.stored
    logits, _ = kit.step(kit.load(tmp_path), prompt, np.ones_like(prompt))
    values = tuned | {"lm_head.weight": tuned["model.embed_tokens.weight"]}
    call, ids = torch.func.functional_call, torch.from_numpy(prompt)
    expected = call(llama.model, values, (ids,), tie_weights=False).logits
    np.testing.assert_allclose(logits, expected.numpy(), atol=TOLERANCE)


def test_a_tenants_classifier_takes_the_first_rows(
    bert, kit: ModuleType, prompt, tmp_path: Path
) -> None:
    adapter = kit.random_adapter("lora", bert, rank=2, seed=1, labels=("ham", "spam"), width=32)
    state = bert.model.state_dict()
    write_merged(bert.skeleton, state, adapter, tmp_path, precision="exact")
    feeds = {"input_ids": prompt, "attention_mask": np.ones_like(prompt)}
    logits = kit.load(tmp_path).run(feeds, ("logits",))["logits"].numpy()
    write_unmerged(bert.skeleton, state, bert.sites, tmp_path, precision="exact")
    bank = kit.bank_of(bert, {"spam": adapter})
    feeds |= {"bank": bank.array, "slot": np.ones(3, np.int64)}
    through_bank = kit.load(tmp_path).run(feeds, ("logits",))["logits"].numpy()
    np.testing.assert_allclose(logits, through_bank, atol=TOLERANCE)
    assert np.all(logits[:, 2:] == 0)
    assert np.abs(logits[:, :2]).min() > 0
