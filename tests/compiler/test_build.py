"""The whole way on a tiny model: spec, plan, build, session; and what a build refuses."""

import json
import os
import random
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import tokenizers
import torch
from click.testing import CliRunner
from transformers import LlamaConfig, LlamaForCausalLM

from compiler import adapter as adapters
from compiler.artifact import verify
from compiler.cli import main
from compiler.session import Session
from planner import Spec, recommend
from planner.documents import dump

WORDS = ["<pad>", "<end>", *(f"w{i}" for i in range(94))]
KILLS = int(os.environ.get("PARETUNE_KILLS", "3"))
"""Every kill costs the start of a process; acceptance is shown with 20."""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder, a plan and two tenants' data."""
    folder = tmp_path_factory.mktemp("build")
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=96,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        bos_token_id=None,
        eos_token_id=1,
        pad_token_id=0,
    )
    LlamaForCausalLM(config).save_pretrained(folder / "model")
    words = tokenizers.Tokenizer(
        tokenizers.models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<pad>")
    )
    words.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    words.save(str(folder / "model" / "tokenizer.json"))
    special = {"eos_token": "<end>", "pad_token": "<pad>"}
    (folder / "model" / "tokenizer_config.json").write_text(json.dumps(special))
    write_data(folder / "odd.jsonl", step=1, rows=60)
    write_data(folder / "even.jsonl", step=2, rows=60)
    (folder / "plan.json").write_text(dump(plan(folder / "model")))
    return folder


def write_data(path: Path, *, step: int, rows: int) -> None:
    lines = [
        {"prompt": f"w{i} w{i + 1}", "completion": " ".join(f"w{i + k * step}" for k in range(8))}
        for i in range(rows)
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def plan(model: Path, **pinned: object):
    spec = {
        "task": "causal_lm",
        "model": str(model),
        "vram_gib": 4,
        "pinned": {"method": "lora", "rank": 4, "format": "fp32", **pinned},
        "training": {"hardware": "cpu-2core", "max_steps": 12},
    }
    made = recommend(Spec.model_validate_json(json.dumps(spec)))
    candidate = made.candidate.model_copy(update={"batch_size": 8, "sequence_length": 32})
    training = made.training.model_copy(update={"checkpoint_every": 2, "evaluate_every": 4})
    return made.model_copy(update={"candidate": candidate, "training": training})


def build(place: Path, out: Path, *options: str, data: tuple[str, ...] = ("odd", "even")):
    arguments = ["build", str(place / "plan.json"), "--model", str(place / "model")]
    for tenant in data:
        arguments += ["--data", f"{tenant}={place / f'{tenant}.jsonl'}"]
    arguments += ["--out", str(out), "--cache", str(place / "cache"), "--quiet", *options]
    return CliRunner().invoke(main, arguments)


@pytest.fixture(scope="module")
def artifact(place: Path) -> Path:
    out = place / "artifact"
    result = build(place, out)
    assert result.exit_code == 0, result.output
    return out


def test_a_build_serves_the_base_and_both_tenants_in_one_batch(artifact: Path) -> None:
    verify(artifact)
    session = Session.open(artifact)
    assert session.tenants == ("odd", "even")
    ids = np.random.default_rng(0).integers(2, 96, (3, 9))
    rows = ["even", "base", "odd"]
    mixed = session.logits(ids, rows)
    for row, tenant in enumerate(rows):
        alone = session.logits(ids[row : row + 1], tenant)
        np.testing.assert_allclose(mixed[row], alone[0], atol=1e-5)
    assert np.abs(mixed[0] - session.logits(ids[:1], "base")[0]).max() > 1e-2


def test_the_export_agrees_with_the_trained_graph(artifact: Path) -> None:
    report = json.loads((artifact / "parity.json").read_text())
    assert [row["tenant"] for row in report["agreements"]] == ["base", "odd", "even"]
    assert all(row["max_error"] <= 1e-4 for row in report["agreements"])


def test_nothing_is_left_beside_the_artifact(artifact: Path) -> None:
    assert not list(artifact.parent.glob(".artifact.*"))


@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("dora", ["--set", "candidate.method=dora"]),
        ("pissa", ["--set", "candidate.method=pissa", "--set", "candidate.alpha=4"]),
        ("vera", ["--set", "candidate.method=vera", "--set", "candidate.alpha=null"]),
        (
            "ia3",
            [
                "--set",
                "candidate.method=ia3",
                "--set",
                "candidate.rank=null",
                "--set",
                "candidate.alpha=null",
            ],
        ),
        ("qlora", ["--set", "candidate.method=qlora", "--set", "candidate.format=nf4"]),
        ("bf16", ["--set", "candidate.format=bf16", "--set", "candidate.checkpointing=block"]),
        (
            "full",
            [
                "--set",
                "candidate.method=full",
                "--set",
                "candidate.rank=null",
                "--set",
                "candidate.alpha=null",
                "--set",
                "candidate.export=merged",
            ],
        ),
    ],
)
def test_every_kind_of_method_builds(place: Path, tmp_path: Path, method, options) -> None:
    result = build(
        place, tmp_path / method, *options, "--set", "training.max_steps=2", data=("odd",)
    )
    assert result.exit_code == 0, result.output
    assert Session.open(tmp_path / method).tenants == ("odd",)


def refused(result, exit_code: int, text: str) -> None:
    assert result.exit_code == exit_code, result.output
    assert text in result.output


def test_bad_lines_are_all_reported_before_training(place: Path, tmp_path: Path) -> None:
    bad = tmp_path / "odd.jsonl"
    bad.write_text('{"prompt": "w1", "completion": "w2"}\nnot json\n{"prompt": "w1"}\n')
    result = CliRunner().invoke(
        main,
        [
            "build",
            str(place / "plan.json"),
            f"--model={place / 'model'}",
            f"--data=odd={bad}",
            f"--out={tmp_path / 'out'}",
        ],
    )
    refused(result, 2, "odd.jsonl:2")
    assert "odd.jsonl:3" in result.output
    assert not list(tmp_path.glob(".out*"))


@pytest.mark.parametrize("tenant", ["../up", "a/b", "base", "Odd"])
def test_a_tenant_name_is_not_a_path(place: Path, tmp_path: Path, tenant: str) -> None:
    arguments = ["build", str(place / "plan.json"), f"--model={place / 'model'}"]
    arguments += [f"--data={tenant}={place / 'odd.jsonl'}", f"--out={tmp_path / 'out'}"]
    refused(CliRunner().invoke(main, arguments), 2, tenant)
    assert not list(tmp_path.iterdir())


def test_a_plan_for_another_model_is_refused(place: Path, tmp_path: Path) -> None:
    config = json.loads((place / "model" / "config.json").read_text())
    other = tmp_path / "other"
    other.mkdir()
    (other / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 5}))
    (other / "tokenizer.json").write_bytes((place / "model" / "tokenizer.json").read_bytes())
    arguments = ["build", str(place / "plan.json"), f"--model={other}"]
    arguments += [f"--data=odd={place / 'odd.jsonl'}", f"--out={tmp_path / 'out'}"]
    refused(CliRunner().invoke(main, arguments), 5, "the plan is for")


def test_an_artifact_is_not_overwritten(place: Path, artifact: Path) -> None:
    refused(build(place, artifact), 2, "exists already")


def test_an_unknown_method_in_a_plan_is_named(place: Path, tmp_path: Path) -> None:
    result = build(place, tmp_path / "out", "--set", "candidate.method=lorra")
    refused(result, 2, "did you mean 'lora'?")


def test_a_full_disk_leaves_nothing_half_written(place: Path, tmp_path: Path) -> None:
    """A limit on file sizes stands in for a full disk: both fail in the middle of a write."""
    out = tmp_path / "out"
    result = run_limited(place, out, limit_bytes=100_000)
    assert result.returncode == 1
    assert "error: " in result.stderr
    assert "Traceback" not in result.stderr
    assert not out.exists()
    assert run_limited(place, out, limit_bytes=None).returncode == 0
    verify(out)


def command(place: Path, out: Path) -> list[str]:
    words = [sys.executable, "-c", "from compiler.cli import main; main()", "build"]
    words += [str(place / "plan.json"), f"--model={place / 'model'}", f"--out={out}"]
    words += [f"--data={t}={place / f'{t}.jsonl'}" for t in ("odd", "even")]
    return [*words, f"--cache={place / 'cache'}", "--quiet"]


def run_limited(place: Path, out: Path, limit_bytes: int | None):
    def limit() -> None:
        if limit_bytes is not None:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit_bytes, limit_bytes))

    return subprocess.run(
        command(place, out), capture_output=True, text=True, preexec_fn=limit, check=False
    )


def test_a_killed_build_resumes_to_the_same_bytes(
    place: Path, artifact: Path, tmp_path: Path
) -> None:
    """SIGKILL at random moments; at none of them is a half artifact visible."""
    out = tmp_path / "killed"
    moments = random.Random(0)
    started = time.monotonic()
    subprocess.run(command(place, tmp_path / "whole"), check=True, capture_output=True)
    whole = time.monotonic() - started
    kills = 0
    while kills < KILLS:
        process = subprocess.Popen(command(place, out), stderr=subprocess.PIPE)
        try:
            process.wait(moments.uniform(0.2, 1.0) * whole)
        except subprocess.TimeoutExpired:
            process.kill()
            kills += 1
        process.communicate()
        if out.exists():
            verify(out)
            break
    if not out.exists():
        subprocess.run(command(place, out), check=True, capture_output=True)
    for tenant in ("odd", "even"):
        file = f"tenants/{tenant}/{'adapter.safetensors'}"
        assert (out / file).read_bytes() == (artifact / file).read_bytes()
        assert adapters.load(out / file).tensors
