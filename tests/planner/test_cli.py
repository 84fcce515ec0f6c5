"""Every command, and every mistake a user can make with it."""

import json
import os
from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result

from planner import Estimate, Figure, Plan, catalog, estimate
from planner.cli import main
from planner.commands.compare import distinct

EXAMPLES = catalog.specs_folder() / "examples"
DEMO = str(EXAMPLES / "smollm2-tenants.json")


def run(*arguments: str) -> Result:
    return CliRunner().invoke(main, arguments)


@pytest.fixture(scope="module")
def plan_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("plan") / "plan.json"
    assert run("recommend", DEMO, "--out", str(path)).exit_code == 0
    return path


def test_recommend_writes_the_plan_and_explains_it(tmp_path: Path) -> None:
    out = tmp_path / "plan.json"
    found = run("recommend", DEMO, "--out", str(out))
    assert found.exit_code == 0
    assert found.stdout.startswith("smollm2-135m: causal_lm, 134.5M parameters\n")
    assert found.stderr == f"wrote {out}\n"
    assert Plan.model_validate_json(out.read_text()).candidate.method == "lora"
    assert os.listdir(tmp_path) == ["plan.json"]


def test_recommend_json_is_one_document_equal_to_the_file(plan_file: Path) -> None:
    found = run("recommend", DEMO, "--json")
    assert json.loads(found.stdout)["schema_version"] == 1
    assert found.stdout == plan_file.read_text()
    assert found.stderr == ""


def test_recommend_set_overrides_a_key(tmp_path: Path) -> None:
    found = run("recommend", DEMO, "--json", "--set", "pinned.rank=8", "--set", "training.seed=3")
    plan = Plan.model_validate_json(found.stdout)
    assert (plan.candidate.rank, plan.training.seed) == (8, 3)
    assert plan.spec.pinned.rank == 8


def test_validate_lists_what_is_assumed() -> None:
    minimal = str(EXAMPLES / "minimal.json")
    found = run("validate", minimal)
    assert found.exit_code == 0
    assert "valid, " in found.stdout
    assert "assumed: 5000 examples per tenant" in found.stdout
    document = json.loads(run("validate", minimal, "--json").stdout)
    assert (document["schema_version"], document["valid"]) == (1, True)
    assert document["parameters"] == 8_030_261_248


def test_explain_repeats_what_recommend_said(plan_file: Path) -> None:
    assert run("explain", str(plan_file)).stdout == run("recommend", DEMO).stdout
    document = json.loads(run("explain", str(plan_file), "--json").stdout)
    assert document["schema_version"] == 1
    assert document["reasons"]


@pytest.mark.parametrize("name", ["spec", "plan"])
def test_schema_prints_a_json_schema(name: str) -> None:
    assert json.loads(run("schema", name).stdout)["type"] == "object"


@pytest.mark.parametrize(
    ("command", "line"),
    [
        ("methods", "lora           LoRA               arXiv:2106.09685  yes"),
        ("models", f"gemma-2-2b          Gemma 2 2B{'gemma2':>23}{'decoder':>14}{'no':>12}"),
        ("hardware", f"l40s{44.988:>29.4g}{864:>9}"),
    ],
)
def test_listings(command: str, line: str) -> None:
    assert any(row.startswith(line) for row in run(command).stdout.splitlines())
    document = json.loads(run(command, "--json").stdout)
    assert document["schema_version"] == 1
    assert line.split()[0] in document[command]


@pytest.mark.parametrize(
    ("command", "name", "line"),
    [
        ("methods", "vera", "vera_A rank x max_in for each model, frozen"),
        ("methods", "c3a", "c3a_kernel output_blocks x input_blocks x block_size for each"),
        ("models", "t5-base", "layers 12, and 12 of the encoder, 768 wide"),
        ("models", "mixtral-8x7b", "compiler does not build it: its routed experts"),
        ("hardware", "l4", "bandwidth_gb_per_second 300 NVIDIA L4 data sheet"),
    ],
)
def test_one_of_a_listing(command: str, name: str, line: str) -> None:
    assert line in " ".join(run(command, name).stdout.split())
    assert list(json.loads(run(command, name, "--json").stdout)[command]) == [name]
    wrong = run(command, "nosuch")
    assert (wrong.exit_code, wrong.stdout) == (2, "")
    assert "'nosuch'" in wrong.stderr


def test_a_model_of_ones_own_is_shown_as_the_planner_sees_it(tmp_path: Path) -> None:
    config = catalog.config_of(catalog.entry("models", "gpt2"))
    (tmp_path / "config.json").write_text(json.dumps(config))
    found = run("models", str(tmp_path)).stdout.splitlines()
    assert found[0] == tmp_path.name
    assert found[2:4] == ["  family            gpt2, decoder", "  parameters        124,439,808"]


def test_a_folder_named_as_a_model_of_the_catalogue_is_none(tmp_path: Path) -> None:
    folder = tmp_path / "gpt2"
    folder.mkdir()
    other = catalog.config_of(catalog.entry("models", "gpt2-medium"))
    (folder / "config.json").write_text(json.dumps(other))
    (row,) = json.loads(run("models", str(folder), "--json").stdout)["models"].values()
    assert (row["name"], row["title"], row.get("published_parameters")) == ("gpt2", "gpt2", None)
    hub = json.loads(run("models", "openai-community/gpt2", "--json").stdout)["models"]
    assert hub["openai-community/gpt2"]["title"] == "GPT-2"


@pytest.mark.parametrize("command", main.list_commands(click.Context(main)))
def test_help_has_an_example(command: str) -> None:
    found = run(command, "--help")
    assert found.exit_code == 0
    assert f"Example: planner {command}" in found.stdout


def spec_file(folder: Path, **fields: object) -> str:
    document = {"model": "smollm2-135m", "task": "causal_lm", "vram_gib": 16} | fields
    path = folder / "spec.json"
    path.write_text(json.dumps(document))
    return str(path)


MISTAKES = [
    (
        {"vrma_gib": 4},
        "spec.json: unknown key 'vrma_gib'; keys are schema_version, model, task, vram_gib, "
        "family, priority, training, serving, data, pinned",
        "did you mean 'vram_gib'?",
    ),
    (
        {"serving": {"tenant": 4}},
        "spec.json: unknown key 'serving.tenant'; keys are hardware, memory_gib, tenants, ",
        "did you mean 'tenants'?",
    ),
    (
        {"training": {"hardware": {"kind": "gpu", "memory": 4}}},
        "unknown key 'training.hardware.memory'; keys are kind, memory_gib, ",
        "did you mean 'memory_gib'?",
    ),
    (
        {"model": "\ud800"},
        "error: spec.json: invalid JSON: unexpected end of hex escape",
        None,
    ),
    (
        {"other": 1},
        "unknown key 'other'; keys are schema_version, model, ",
        None,
    ),
    (
        {"training": {"hardware": {"kind": "gpu", "memory_gib": 4, "text": 1}}},
        "unknown key 'training.hardware.text'; keys are kind, memory_gib, ",
        None,
    ),
    (
        {"task": "causal-lm"},
        "task: input should be 'causal_lm', 'seq2seq_lm', 'sequence_classification' or "
        "'image_classification', not \"causal-lm\"",
        "did you mean 'causal_lm'?",
    ),
    ({"vram_gib": "lots"}, "vram_gib: input should be a valid number, ", None),
    ({"vram_gib": -1}, "vram_gib: input should be greater than or equal to 0.000001, not -1", None),
    (
        {"pinned": {"method": "lorra"}},
        "unknown method 'lorra'; methods are ",
        "did you mean 'lora'?",
    ),
    ({"model": "smollm2-135"}, "unknown model 'smollm2-135'", "did you mean 'smollm2-135m'?"),
    ({"model": "nowhere/config.json"}, "cannot read nowhere/config.json: no such file", None),
    ({"training": {"hardware": "L4O"}}, "unknown hardware 'L4O'", "did you mean 'l4'?"),
    (
        {"model": "bert-base"},
        "task 'causal_lm' is not for bert, whose kind is encoder",
        None,
    ),
    ({"task": "sequence_classification"}, "is not for llama, whose kind is decoder", None),
    ({"data": {"labels": 3}}, "data.labels is for classifiers", None),
    (
        {"task": "sequence_classification", "model": "bert-base", "serving": {"concurrency": 3}},
        "serving.concurrency 3 is for models that write",
        None,
    ),
    (
        {"task": "sequence_classification", "model": "bert-base", "training": {"packing": True}},
        "training.packing lays texts end to end",
        None,
    ),
    (
        {"training": {"max_steps": 5, "epochs": 2}},
        "training.max_steps 5 and training.epochs 2 both say how long to train",
        "give one of them",
    ),
    ({"pinned": {"method": "ia3", "rank": 4}}, "pinned.rank 4: ia3 has no rank", None),
    (
        {"pinned": {"targets": ["q_prj"]}},
        "no linear matches the target 'q_prj'; roles are attention.query, ",
        "name a role, all-linear, or a module such as model.layers.0.self_attn.q_proj",
    ),
    ({"pinned": {"targets": ["q_("]}}, "'q_(' is no regular expression", None),
    (
        {"serving": {"tenants": 2, "active_tenants": 3}},
        "serving.active_tenants 3 is more than serving.tenants 2",
        None,
    ),
    (
        {"serving": {"per_token_ms": 3}},
        "a latency budget needs the serving hardware's bandwidth_gb_per_second and fp32_tflops",
        "name a device that `planner hardware` lists, or give the figures",
    ),
    ({"training": {"hardware": "l4"}, "vram_gib": 90}, "vram_gib 90 is more than", None),
    ({"serving": {"context_length": 9000}}, "9000 is more than the model's 8192", None),
]


@pytest.mark.parametrize("command", ["recommend", "validate"])
@pytest.mark.parametrize(("fields", "message", "hint"), MISTAKES)
def test_a_wrong_spec_is_refused(
    tmp_path: Path, command: str, fields: dict[str, object], message: str, hint: str | None
) -> None:
    found = run(command, spec_file(tmp_path, **fields))
    assert found.exit_code == 2
    assert found.stdout == ""
    assert message in found.stderr
    assert found.stderr.startswith("error: ")
    if hint is not None:
        assert f"\n\nhint: {hint}" in found.stderr


def test_an_unknown_key_comes_before_the_missing_one_that_it_may_stand_for(tmp_path: Path) -> None:
    path = tmp_path / "spec.json"
    path.write_text(json.dumps({"modle": "gpt2", "task": "causal_lm", "vram_gib": 8}))
    found = run("validate", str(path)).stderr
    assert found.startswith("error: spec.json: unknown key 'modle'; keys are schema_version, ")
    assert found.endswith("; missing key 'model'\n\nhint: did you mean 'model'?\n")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("vram_gib", "--set takes path.to.key=value, not 'vram_gib'"),
        ("serving.tenant=2", "unknown key 'serving.tenant'"),
        ("task.family=code", "--set task.family: 'task' is \"causal_lm\", not a section"),
    ],
)
def test_a_wrong_override_is_refused(tmp_path: Path, override: str, message: str) -> None:
    found = run("recommend", spec_file(tmp_path), "--set", override)
    assert (found.exit_code, message in found.stderr) == (2, True)


def test_missing_file_and_broken_json(tmp_path: Path) -> None:
    missing = tmp_path / "none.json"
    found = run("recommend", str(missing))
    assert found.exit_code == 2
    assert (
        found.stderr == f"error: cannot read {tmp_path / 'none.json'}: no such file or directory\n"
    )
    broken = tmp_path / "spec.json"
    broken.write_text('{"model": ')
    assert "is not JSON" in run("validate", str(broken)).stderr
    broken.write_text("{}")
    assert "missing key 'model'; missing key 'task'" in run("validate", str(broken)).stderr


def test_what_cannot_be_planned_is_not_said_to_be(tmp_path: Path) -> None:
    found = run("recommend", spec_file(tmp_path, task="image_classification"))
    assert found.exit_code == 2
    assert "is not for llama" in found.stderr
    assert "--include-unbuildable" not in found.stderr


def test_a_rank_too_large_is_named_once() -> None:
    found = run("estimate", "--model", "smollm2-135m", "--rank", "1000")
    assert found.stderr == "error: rank 1000: the smallest side of its targets is 192\n"


def test_a_spec_is_no_plan(tmp_path: Path) -> None:
    found = run("explain", spec_file(tmp_path))
    assert found.exit_code == 2
    assert "missing key 'candidate'" in found.stderr
    assert "hint: planner recommend writes a plan of a spec" in found.stderr


def test_infeasible_ends_with_3_and_relaxations() -> None:
    found = run("recommend", str(EXAMPLES / "infeasible-8b-6gb.json"))
    assert found.exit_code == 3
    assert found.stdout == ""
    assert "error: no plan satisfies the spec: the nearest, " in found.stderr
    assert "\n\nhint: feasible with 1 GiB more VRAM (7 GiB)" in found.stderr


def test_an_error_is_one_json_document_where_json_is_asked_for() -> None:
    found = run("recommend", str(EXAMPLES / "infeasible-8b-6gb.json"), "--json")
    error = json.loads(found.stdout)["error"]
    assert (found.exit_code, error["exit_code"]) == (3, 3)
    assert error["message"] in found.stderr
    changes = [relaxation["updates"] for relaxation in error["relaxations"]]
    assert changes == [{"vram_gib": 7}, {"model": "llama-2-7b"}]
    found = run("estimate", "--json", "--model", "no-such-model")
    assert json.loads(found.stdout)["error"]["exit_code"] == 2


@pytest.mark.parametrize("model", ["smollm2-135m", "t5-base", "bert-base", "vit-base"])
def test_what_init_writes_is_valid(tmp_path: Path, model: str) -> None:
    file = str(tmp_path / "spec.json")
    assert run("init", file, "--model", model, "--vram", "8").exit_code == 0
    found = run("validate", file)
    assert found.exit_code == 0, found.stderr


def test_an_unwritable_plan_leaves_nothing_behind(tmp_path: Path) -> None:
    found = run("recommend", DEMO, "--out", str(tmp_path / "none" / "plan.json"))
    assert found.exit_code == 1
    assert "cannot write" in found.stderr
    (tmp_path / "plan.json").mkdir()
    found = run("recommend", DEMO, "--out", str(tmp_path / "plan.json"))
    assert found.exit_code == 1
    assert os.listdir(tmp_path) == ["plan.json"]


@pytest.mark.parametrize("name", ["", ".", "..", "/"])
def test_a_folder_is_no_file_to_write(name: str) -> None:
    found = run("recommend", DEMO, "--out", name)
    assert found.exit_code == 1
    assert found.stderr == f"error: cannot write {name or '.'}: is a directory\n"


def test_an_estimate_is_what_its_schema_says() -> None:
    """And stating every default of one gives the same one."""
    found = run("estimate", "--model", "smollm2-135m", "--json")
    document = Estimate.model_validate_json(found.stdout)
    assert document.training["peak_allocated_bytes"] == (
        document.figures["training.peak_allocated_bytes"].value
    )
    assert document.case.targets == ("all-linear",)
    assert estimate(document.case) == document


def test_plans_that_are_one_are_said_to_be(plan_file: Path) -> None:
    found = run("compare", str(plan_file), str(plan_file))
    assert found.stdout == "no difference\n"


def test_plans_of_one_candidate_differ_in_model_and_length(tmp_path: Path) -> None:
    written = {"model": "smollm2-135m", "task": "causal_lm", "vram_gib": 16}
    written["training"] = {"learning_rate": 1e-4}
    files = [tmp_path / name for name in ("first.json", "second.json", "third.json")]
    for file, more in zip(
        files,
        ({}, {"training": {"learning_rate": 1e-4, "max_steps": 5}}, {"model": "smollm2-360m"}),
        strict=True,
    ):
        file.write_text(json.dumps(written | more))
    shorter = run("compare", str(files[0]), str(files[1]))
    assert "no difference" not in shorter.stdout
    assert "max_steps" in shorter.stdout
    larger = json.loads(run("compare", str(files[0]), str(files[2]), "--json").stdout)
    assert larger["model"]["name"] == ["smollm2-135m", "smollm2-360m"]
    assert larger["training"] == {}


def test_a_band_that_ends_at_nothing_is_a_band() -> None:
    lost, tied = (
        Figure(value=value, evidence="derived", source="of a test", low=low, high=high)
        for value, low, high in ((-1.0, -2.0, 0.0), (1.0, 0.0, 2.0))
    )
    assert not distinct(lost, tied)


def test_a_key_missing_in_a_section_is_no_missing_model(tmp_path: Path) -> None:
    file = spec_file(tmp_path, training={"hardware": {"kind": "gpu"}})
    found = run("validate", file)
    assert "missing key 'training.hardware.memory_gib'" in found.stderr
    assert "hint" not in found.stderr


def test_a_method_of_one_format_says_how_to_ask_for_it() -> None:
    found = run("estimate", "--model", "llama-2-7b", "--method", "qlora")
    assert found.stderr == ("error: qlora trains on nf4, not on bf16\n\nhint: take --format nf4\n")


def test_an_option_of_no_count_is_named() -> None:
    found = run("estimate", "--model", "gpt2", "--batch", "0")
    assert found.exit_code == 2
    assert "invalid value for '--batch': 0 is not in the range x>=1" in found.stderr


def test_an_estimate_says_that_the_runtime_does_not_load_its_base() -> None:
    case = ("estimate", "--model", "llama-3.2-1b", "--runtime", "llama.cpp", "--format")
    assert "by llama.cpp, though llama.cpp loads fp32 or bf16 only)" in run(*case, "nf4").stdout
    assert "though" not in run(*case, "bf16").stdout


@pytest.mark.parametrize(("method", "hint"), [("dora", "take --export merged"), ("houlsby", "")])
def test_an_adapter_that_the_runtime_does_not_load_may_be_merged(method: str, hint: str) -> None:
    case = ("estimate", "--model", "llama-3.2-1b", "--method", method, "--runtime", "vllm")
    found = run(*case)
    assert found.exit_code == 2
    assert found.stderr.startswith(f"error: {method}, unmerged: vllm loads LoRA pairs only")
    assert found.stderr.endswith(f"hint: {hint}\n" if hint else "only\n")
    if hint:
        assert run(*case, *hint.split()[1:]).exit_code == 0


def test_all_linear_is_what_full_fine_tuning_trains() -> None:
    case = ("estimate", "--model", "gpt2", "--method", "full", "--json")
    assert run(*case, "--targets", "all-linear").stdout == run(*case).stdout


@pytest.mark.parametrize(("model", "option"), [("gpt2", False), ("t5-base", True)])
def test_init_says_how_to_go_on(tmp_path: Path, model: str, *, option: bool) -> None:
    said = run("init", str(tmp_path / "spec.json"), "--model", model, "--vram", "8").stdout
    assert said.endswith("spec.json --include-unbuildable\n" if option else "spec.json\n")


def test_a_dominated_choice_is_no_trade_off() -> None:
    spec = str(catalog.specs_folder() / "examples" / "minimal.json")
    points = json.loads(run("frontier", spec, "--json").stdout)["points"]
    count = sum(point["on_frontier"] for point in points)
    assert f"{count} trade-offs, and the choice, which is simpler" in run("frontier", spec).stdout
