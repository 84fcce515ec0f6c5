"""The catalogues: every figure has a source, every lookup names what is near."""

import json
from dataclasses import fields
from pathlib import Path
from typing import cast

import pytest

from planner import catalog
from planner.errors import UsageError
from planner.resolve import resolve
from planner.scenario import GIB, Scenario
from planner.spec import Hardware, Spec


@pytest.mark.parametrize("name", catalog.names("hardware"))
def test_every_hardware_figure_has_a_source(name: str) -> None:
    entry = catalog.entry("hardware", name)
    assert entry["name"] == name
    sources = cast(dict[str, str], entry["sources"])
    assert set(sources) == {each.name for each in fields(Hardware)} - {"kind", "measured"}
    device = catalog.hardware(name)
    assert Hardware.model_validate(device.model_dump()) == device
    for key, source in sources.items():
        unknown = source.startswith(("unknown: ", "none", "assumed: no "))
        assert unknown == (getattr(device, key) is None), (name, key)


def test_thirty_devices_and_the_rates_of_each_are_in_order() -> None:
    names = catalog.names("hardware")
    assert len(names) >= 30
    for device in map(catalog.hardware, names):
        rates = [device.fp32_tflops, device.bf16_tflops, device.int8_tops]
        known = [rate for rate in rates if rate is not None]
        assert known == sorted(known), device


def test_catalogues_hold_what_a_first_user_looks_for() -> None:
    assert {"cpu-2core", "t4", "l4", "l40s", "rtx-4090", "a100-80gb", "h100-80gb"} <= set(
        catalog.names("hardware")
    )
    assert {"smollm2-135m", "all-minilm-l6-v2", "llama-3.1-8b", "mistral-7b"} <= set(
        catalog.names("models")
    )


def test_unknown_names_offer_the_nearest() -> None:
    with pytest.raises(UsageError, match="unknown hardware 'l40x'") as raised:
        catalog.hardware("l40x")
    assert raised.value.hint == "did you mean 'l40s'?"
    with pytest.raises(UsageError, match="unknown model 'smollm-135m'") as raised:
        catalog.model("smollm-135m")
    assert raised.value.hint == "did you mean 'smollm2-135m'?"


@pytest.mark.parametrize("kind", ["models", "hardware"])
def test_a_name_near_to_none_is_told_where_they_are_and_what_else_there_is(kind: str) -> None:
    with pytest.raises(UsageError, match=f"unknown .* '#'; `planner {kind}` lists") as raised:
        catalog.entry(kind, "#")
    assert raised.value.hint == catalog.OTHERWISE[kind]


def test_a_model_is_found_by_hub_id_folder_file_or_config(tmp_path: Path) -> None:
    by_name = catalog.model("llama-3.2-3b")
    assert catalog.model("meta-llama/Llama-3.2-3B") == by_name
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(dict(by_name.config)))
    for choice in (str(folder), str(folder / "config.json"), dict(by_name.config)):
        assert catalog.model(choice).architecture == by_name.architecture
    assert catalog.model(str(folder)).name == "mine"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", "is not JSON"),
        (b'{"a": {"b": 1, "c": 2, "b": 3}}', "key 'b' is said twice"),
        (b"[1]", "holds list, not a JSON object"),
        (b"\xff\xfe", "is not a text file"),
        (b"{}", "unknown model_type ''"),
    ],
)
def test_a_bad_config_file_is_named(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(UsageError, match=message):
        catalog.model(str(tmp_path))


def test_a_missing_config_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"cannot read .*config\.json: no such file"):
        catalog.model(str(tmp_path))


@pytest.mark.parametrize(
    ("name", "sold", "larger"),
    [
        ("rtx-4090", 24, 25),
        ("h100-80gb", 80, 82),
        ("l4", 24, 25),
        ("t4", 16, 17),
        ("l40s", 48, 49),
        ("h200", 141, 145),
        ("rtx-3090", 24, 25),
    ],
)
def test_the_size_that_a_device_is_sold_as_means_its_memory(
    name: str, sold: int, larger: int
) -> None:
    def scenario(gib: float) -> Scenario:
        serving = {"hardware": name, "memory_gib": gib}
        spec = {"model": "gpt2", "task": "causal_lm", "vram_gib": gib, "serving": serving}
        return resolve(Spec.model_validate(spec | {"training": {"hardware": name}}))

    real = catalog.hardware(name).memory_gib
    found = scenario(sold)
    assert found.training_budget_bytes == found.serving_budget_bytes == min(real, sold) * GIB
    said = f"vram_gib {sold} means all {real:g} GiB of the training hardware"
    assert (said in found.assumptions) == (real < sold)
    with pytest.raises(UsageError, match=f"vram_gib {larger} is more than the training hardware's"):
        scenario(larger)
