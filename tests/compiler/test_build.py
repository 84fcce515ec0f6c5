"""The whole way on tiny models: spec, plan, build, session; and what a build refuses."""

import json
import resource
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from transformers import BertConfig, BertModel

from compiler.artifact import verify
from compiler.cli import main
from compiler.session import Session
from planner.catalog import config_digest
from planner.errors import UsageError
from planner.method import Method, buildable

Build = Callable[..., Result]

IDS = np.random.default_rng(0).integers(2, 96, (3, 9))


@pytest.fixture(scope="module")
def place(toy: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("build")
    toy.write_place(folder, max_steps=12)
    return folder


@pytest.fixture(scope="module")
def build(toy: ModuleType) -> Build:
    """Runs `compiler build` in this process."""

    def run(place: Path, out: Path, *options: str, tenants: tuple[str, ...] = ("odd", "even")):
        return CliRunner().invoke(main, toy.build_words(place, out, *options, tenants=tenants))

    return run


@pytest.fixture(scope="module")
def artifact(place: Path, build: Build) -> Path:
    out = place / "artifact"
    succeeded(build(place, out))
    return out


def succeeded(result: Result) -> None:
    assert result.exit_code == 0, result.output


def refused(result: Result, exit_code: int, text: str) -> None:
    assert result.exit_code == exit_code, result.output
    assert text in result.output


def agreements(artifact: Path) -> dict[str, float]:
    """The largest error of each tenant's logits, as the build has measured it."""
    report = json.loads((artifact / "parity.json").read_text("utf-8"))
    return {row["tenant"]: row["max_error"] for row in report["agreements"]}


def test_a_build_serves_the_base_and_both_tenants_in_one_batch(artifact: Path) -> None:
    verify(artifact)
    session = Session.open(artifact)
    assert session.tenants == ("odd", "even")
    rows = ["even", "base", "odd"]
    mixed = session.logits(IDS, rows)
    for row, tenant in enumerate(rows):
        alone = session.logits(IDS[row : row + 1], tenant)
        np.testing.assert_allclose(mixed[row], alone[0], atol=1e-5)
    assert np.abs(mixed[0] - session.logits(IDS[:1], "base")[0]).max() > 1e-2


def test_the_export_agrees_with_the_trained_graph(artifact: Path) -> None:
    errors = agreements(artifact)
    assert list(errors) == ["base", "odd", "even"]
    assert max(errors.values()) <= 1e-4


def test_nothing_is_left_beside_the_artifact(artifact: Path) -> None:
    assert not list(artifact.parent.glob(".artifact.*"))


def choices(method: Method) -> list[str]:
    """Overrides of a plan for LoRA that choose another method."""
    rank = 4 if method.ranks else None
    chosen = {
        "method": method.name,
        "rank": rank,
        "alpha": method.default_alpha(rank) if rank and method.default_alpha else None,
        "format": method.formats[0],
        "export": method.serves[0],
    }
    return [f"--set=candidate.{key}={json.dumps(value)}" for key, value in chosen.items()]


@pytest.mark.parametrize("method", buildable().values(), ids=buildable())
def test_every_method_builds(place: Path, build: Build, tmp_path: Path, method: Method) -> None:
    options = ["--set=training.max_steps=2", *choices(method)]
    succeeded(build(place, tmp_path / "out", *options, tenants=("odd",)))
    assert max(agreements(tmp_path / "out").values()) <= 1e-4
    session = Session.open(tmp_path / "out")
    assert session.manifest.tenants["odd"].method == method.name
    assert session.manifest.kind == method.serves[0]


def test_bf16_weights_and_arithmetic_build(place: Path, build: Build, tmp_path: Path) -> None:
    """The adapter is trained in bf16, and served in fp32 on the weights rounded to bf16."""
    options = ["training.max_steps=2", "candidate.format=bf16", "candidate.compute=bf16"]
    words = [f"--set={option}" for option in options]
    succeeded(build(place, tmp_path / "out", *words, tenants=("odd",)))
    assert max(agreements(tmp_path / "out").values()) <= 1e-4
    assert Session.open(tmp_path / "out").manifest.format == "bf16"


def test_recomputed_blocks_train_the_same_adapter(
    place: Path, build: Build, artifact: Path, tmp_path: Path
) -> None:
    succeeded(build(place, tmp_path / "out", "--set=candidate.checkpointing=block"))
    for tenant in ("odd", "even"):
        file = f"tenants/{tenant}/adapter.safetensors"
        assert (tmp_path / "out" / file).read_bytes() == (artifact / file).read_bytes()


def test_full_fine_tuning_keeps_a_tied_head_tied(
    toy: ModuleType, build: Build, tmp_path: Path
) -> None:
    toy.write_place(tmp_path, layers=1, tied=True, max_steps=2)
    options = [*choices(buildable()["full"]), "--set=candidate.learning_rate=1e-2"]
    succeeded(build(tmp_path, tmp_path / "out", *options, tenants=("odd",)))
    assert agreements(tmp_path / "out")["odd"] <= 1e-4
    session = Session.open(tmp_path / "out")
    with pytest.raises(UsageError, match="the base model is not in the artifact"):
        session.logits(IDS, "base")


TOPICS = {"parity": ("even", "odd"), "size": ("large", "medium", "small")}


def label(tenant: str, number: int) -> str:
    """Of a text that repeats one of the words w0 … w11."""
    names = TOPICS[tenant]
    return names[number % 2] if tenant == "parity" else names[2 - number // 4]


@pytest.fixture(scope="module")
def classifiers(toy: ModuleType, build: Build, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An artifact of a BERT with two tenants of two and of three labels."""
    folder = tmp_path_factory.mktemp("classifiers")
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=96,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=4,
        max_position_embeddings=40,
    )
    BertModel(config, add_pooling_layer=False).save_pretrained(folder / "model")
    toy.write_vocabulary(folder / "model")
    for tenant in TOPICS:
        lines = [
            {"text": " ".join([f"w{n}"] * times), "label": label(tenant, n)}
            for n in range(12)
            for times in range(1, 9)
        ]
        toy.write_lines(folder / f"{tenant}.jsonl", lines)
    toy.write_plan(folder, "sequence_classification", max_steps=30, learning_rate=1e-2)
    succeeded(build(folder, folder / "out", tenants=tuple(TOPICS)))
    return folder / "out"


def test_one_batch_classifies_for_tenants_of_different_labels(classifiers: Path) -> None:
    assert agreements(classifiers).keys() == {"base", *TOPICS}
    assert max(agreements(classifiers).values()) <= 1e-4
    session = Session.open(classifiers)
    texts = ["w1", "w2 w2 w2 w2", "w5 w5", "w7 w7 w7", "w10 w10"]
    tenants = ["size", "parity", "size", "parity", "size"]
    mixed = session.classify(texts, tenants)
    assert [found.label for found in mixed] == ["small", "even", "medium", "odd", "large"]
    for text, tenant, found in zip(texts, tenants, mixed, strict=True):
        assert tuple(found.probabilities) == TOPICS[tenant]
        (alone,) = session.classify([text], tenant)
        assert alone.label == found.label
        assert alone.probabilities == pytest.approx(found.probabilities, abs=1e-5)


def test_the_base_of_classifiers_has_logits_and_no_labels(classifiers: Path) -> None:
    session = Session.open(classifiers)
    with pytest.raises(UsageError, match="'base' has no labels"):
        session.classify(["w4"], ["base"])
    assert not session.logits(IDS, "base").any()


def test_bad_lines_are_all_reported_before_training(
    place: Path, build: Build, tmp_path: Path
) -> None:
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"prompt": "w1", "completion": "w2"}\nnot json\n{"prompt": "w1"}\n', "utf-8")
    result = build(place, tmp_path / "out", f"--data=bad={bad}", tenants=())
    refused(result, 2, "bad.jsonl:2")
    assert "bad.jsonl:3" in result.output
    assert not list(tmp_path.glob(".out*"))


@pytest.mark.parametrize("tenant", ["../up", "a/b", "base", "Odd"])
def test_a_tenant_name_is_not_a_path(
    place: Path, build: Build, tmp_path: Path, tenant: str
) -> None:
    data = f"--data={tenant}={place / 'odd.jsonl'}"
    refused(build(place, tmp_path / "out", data, tenants=()), 2, tenant)
    assert not list(tmp_path.iterdir())


def test_a_plan_for_another_model_is_refused(place: Path, build: Build, tmp_path: Path) -> None:
    config = json.loads((place / "model" / "config.json").read_text("utf-8"))
    other = tmp_path / "other"
    other.mkdir()
    (other / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 5}), "utf-8")
    (other / "tokenizer.json").write_bytes((place / "model" / "tokenizer.json").read_bytes())
    refused(build(place, tmp_path / "out", f"--model={other}"), 5, "the plan is for")


def test_a_model_that_is_not_built_is_refused(place: Path, build: Build, tmp_path: Path) -> None:
    config = json.loads((place / "model" / "config.json").read_text("utf-8"))
    config |= {"model_type": "opt", "ffn_dim": 64}
    (tmp_path / "config.json").write_text(json.dumps(config), "utf-8")
    planned = f"--set=model.config_digest={json.dumps(config_digest(config))}"
    result = build(place, tmp_path / "out", planned, f"--model={tmp_path}")
    refused(result, 2, "does not build the family 'opt' yet: its MLP takes")


def test_an_artifact_is_not_overwritten(place: Path, build: Build, artifact: Path) -> None:
    refused(build(place, artifact), 2, "exists already")


def test_an_unknown_method_in_a_plan_is_named(place: Path, build: Build, tmp_path: Path) -> None:
    result = build(place, tmp_path / "out", "--set=candidate.method=lorra")
    refused(result, 2, "did you mean 'lora'?")


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        ('["nope"]', "no linear matches the target 'nope'"),
        ("[]", "candidate.targets names no linear"),
        ('["lm_head"]', "candidate.targets: the compiler does not adapt 'lm_head' yet"),
    ],
)
def test_wrong_targets_are_refused_before_anything_is_kept(
    place: Path, build: Build, tmp_path: Path, targets: str, message: str
) -> None:
    refused(build(place, tmp_path / "out", f"--set=candidate.targets={targets}"), 2, message)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("training.seed", "-1"),
        ("training.seed", str(2**63)),
        ("training.epochs", "Infinity"),
        ("candidate.alpha", "Infinity"),
        ("candidate.learning_rate", "Infinity"),
    ],
)
def test_numbers_of_a_plan_are_ones_that_can_be_worked_with(
    place: Path, build: Build, tmp_path: Path, key: str, value: str
) -> None:
    refused(build(place, tmp_path / "out", f"--set={key}={value}"), 2, f"{key}: input should be")


def test_a_full_disk_leaves_nothing_half_written(
    toy: ModuleType, place: Path, build: Build, tmp_path: Path
) -> None:
    """A limit on file sizes stands in for a full disk: both fail in the middle of a write."""
    out = tmp_path / "out"
    result = subprocess.run(
        toy.build_command(place, out),
        capture_output=True,
        text=True,
        preexec_fn=limit_files,
        check=False,
    )
    assert result.returncode == 1
    assert "error: " in result.stderr
    assert "Traceback" not in result.stderr
    assert not out.exists()
    succeeded(build(place, out))
    verify(out)


def limit_files() -> None:
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))


@pytest.mark.parametrize("out", [".", "/"])
def test_an_artifact_needs_a_name(place: Path, build: Build, out: str) -> None:
    refused(build(place, Path(out)), 2, f"error: '{out}' has no name of its own")
