"""What a PEFT directory can hold that is refused, and the two commands on a real artifact."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
from click.testing import CliRunner

from compiler.adapter import uniform
from compiler.cli import main
from compiler.peft import read
from compiler.peft_config import REFUSED
from compiler.peft_write import write
from compiler.tenants import read_adapter
from planner.errors import IncompatibleError, UsageError
from planner.method import Target

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."


@pytest.fixture
def lora(toy, tmp_path):
    """A PEFT directory of rank 2 on the toy's query and value, without our own file."""
    folder = tmp_path / "peft"
    write(toy.toy_adapter("lora", seed=1, rank=2), folder, "toy")
    (folder / "paretune.json").unlink()
    return folder


def sites(toy):
    features = {"classifier": toy.LABELS_MAX}
    return tuple(
        Target(name, role, features.get(name, toy.HIDDEN), toy.HIDDEN)
        for name, role in toy.ROLES.items()
    )


def set_field(folder, **fields):
    config = json.loads((folder / CONFIG).read_text())
    (folder / CONFIG).write_text(json.dumps(config | fields))


def set_tensors(folder, **tensors):
    found = safetensors.numpy.load_file(folder / WEIGHTS) | tensors
    kept = {name: tensor for name, tensor in found.items() if tensor is not None}
    safetensors.numpy.save_file(kept, folder / WEIGHTS)


NOT_DEFAULT = {
    "bias": "all",
    "lora_bias": True,
    "target_parameters": ["experts.gate_up_proj"],
    "trainable_token_indices": [1, 2],
    "use_qalora": True,
    "alora_invocation_tokens": [5],
    "layer_replication": [[0, 2], [1, 3]],
    "use_bdlora": {"nblocks": 2},
    "ensure_weight_tying": True,
    "megatron_config": {"a": 1},
    "velora_config": {"num_groups": 4},
    "monteclora_config": {"num_samples": 8},
    "arrow_config": {"top_k": 3},
    "kasa_config": {"beta": 0.1},
    "loftq_config": {"loftq_bits": 4},
}


def test_every_refused_field_is_tried():
    assert NOT_DEFAULT.keys() == REFUSED.keys()


@pytest.mark.parametrize("field", NOT_DEFAULT)
def test_a_field_that_cannot_be_honoured_is_refused_by_name(field, lora, toy):
    set_field(lora, **{field: NOT_DEFAULT[field]})
    with pytest.raises(IncompatibleError, match=f"sets {field} to "):
        read(lora, sites(toy), toy.BASE_DIGEST)


@pytest.mark.parametrize("value", [None, False, "", [], {}])
def test_an_unknown_field_without_a_value_passes(value, lora, toy):
    set_field(lora, a_field_of_tomorrow=value, loftq_config={}, use_bdlora=None, lora_bias=False)
    assert read(lora, sites(toy), toy.BASE_DIGEST).rank == 2


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"a_field_of_tomorrow": 3}, "sets a_field_of_tomorrow to 3: this release does not know"),
        ({"peft_type": "OFT"}, "not valid at peft_type: Input should be 'LORA', 'VERA' or 'IA3'"),
        ({"r": 0}, "not valid at r"),
        ({"r": 10**400}, "not valid at r: Input should be less than or equal to 2147483647"),
        ({"rank_pattern": {"query": 10**400}}, "not valid at rank_pattern.query"),
        ({"rank_pattern": {"a{99999999999999999999}": 2}}, "the repetition number is too large"),
        ({"target_modules": "(" * 5000}, "maximum recursion depth exceeded"),
        ({"lora_alpha": "8"}, "not valid at lora_alpha"),
        ({"r": 3}, r"'layer.query.lora_A' has shape \[2, 24\], but \[3, 24\] is needed"),
        ({"rank_pattern": {"query": 3}}, r"'layer.query.lora_A' has shape \[2, 24\]"),
        ({"rank_pattern": {"(query": 2}}, r"holds the pattern '\(\.\*\\\.\)\?\(\(query\)\$'"),
        ({"target_modules": ["query"]}, "leaves out 'layer.value', but the file holds some"),
        ({"target_modules": ["query", "value", "classifier"]}, "names 'classifier', but the file"),
        ({"exclude_modules": ["query"]}, "leaves out 'layer.query', but the file holds some"),
        ({"layers_to_transform": [3]}, "leaves out 'layer.query', but the file holds some"),
        ({"modules_to_save": ["layer.query"]}, "leaves out 'layer.query', but the file holds some"),
        ({"use_dora": True}, r"lacks \['layer.query.lora_magnitude_vector'"),
        ({"peft_type": "VERA"}, "tensors that VeRA has no use for: base_model.model.layer.query"),
        ({"init_lora_weights": "loftq"}, 'sets init_lora_weights to "loftq"'),
    ],
)
def test_a_configuration_that_does_not_fit_is_refused(fields, message, lora, toy):
    set_field(lora, **fields)
    with pytest.raises(IncompatibleError, match=message):
        read(lora, sites(toy), toy.BASE_DIGEST)


@pytest.mark.parametrize("start", ["pissa", "pissa_niter_16", "olora", "corda", "lora_ga"])
def test_an_adapter_of_an_edited_base_is_refused_with_the_way_out(start, lora, toy):
    set_field(lora, init_lora_weights=start)
    with pytest.raises(IncompatibleError, match=f'"{start}", which changes the base') as refusal:
        read(lora, sites(toy), toy.BASE_DIGEST)
    assert "path_initial_model_for_weight_conversion" in (refusal.value.hint or "")


A = f"{PREFIX}layer.query.lora_A.weight"


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({A: None}, r"lacks \['layer.query.lora_A'\]"),
        ({A: np.zeros((2, 23), np.float32)}, r"shape \[2, 23\], but \[2, 24\] is needed"),
        ({A: np.zeros((48,), np.float32)}, r"shape \[48\], but \[2, 24\] is needed"),
        ({A: np.full((2, 24), np.nan, np.float32)}, "holds NaN or infinity"),
        ({A: np.zeros((2, 24), np.int64)}, "is stored as I64"),
        (
            {f"{PREFIX}layer.query.lora_B.bias": np.zeros(24, np.float32)},
            "no use for: base_model.model.layer.query.lora_B.bias",
        ),
        (
            {f"{PREFIX}layer.key.lora_A.weight": np.zeros((2, 24), np.float32)},
            "adapts 'layer.key', which is no site of this base",
        ),
        (
            {f"{PREFIX}../../etc.lora_A.weight": np.zeros((2, 24), np.float32)},
            "adapts '../../etc', which is no site",
        ),
        ({"layer.query.lora_A.weight": np.zeros((2, 24), np.float32)}, "no use for: layer.query"),
    ],
)
def test_tensors_that_do_not_fit_are_refused(tensors, message, lora, toy):
    set_tensors(lora, **tensors)
    with pytest.raises(IncompatibleError, match=message):
        read(lora, sites(toy), toy.BASE_DIGEST)


@pytest.mark.parametrize("module", ["lm_head", "classifier"])
def test_a_layer_saved_whole_is_refused_unless_the_base_has_that_classifier(module, lora, toy):
    set_field(lora, modules_to_save=[module])
    set_tensors(lora, **{f"{PREFIX}{module}.weight": np.zeros((4, 24), np.float32)})
    causal = [site for site in sites(toy) if site.role != "classifier"]
    with pytest.raises(IncompatibleError, match=rf"\['{module}'\].* a layer trained whole"):
        read(lora, causal, toy.BASE_DIGEST)


def test_many_left_over_tensors_are_counted(lora, toy):
    set_tensors(lora, **{f"x{i}": np.zeros(1, np.float32) for i in range(8)})
    with pytest.raises(IncompatibleError, match="x0, x1, x2, x3, x4 and 3 more"):
        read(lora, sites(toy), toy.BASE_DIGEST)


def test_projections_that_should_be_in_the_file_must_be(toy, tmp_path):
    generator = np.random.default_rng(1)
    names = ("layer.query", "layer.value")
    tensors = {f"{n}.vera_lambda_d": generator.normal(size=4) for n in names}
    tensors |= {f"{n}.vera_lambda_b": generator.normal(size=24) for n in names}
    tensors |= {"vera_A": generator.normal(size=(4, 24)), "vera_B": generator.normal(size=(24, 4))}
    adapter = uniform(
        method="vera",
        rank=4,
        alpha=None,
        targets=tuple(site for site in sites(toy) if site.name in names),
        tensors={name: tensor.astype(np.float32) for name, tensor in tensors.items()},
        base_digest=toy.BASE_DIGEST,
    )
    write(adapter, tmp_path / "out", "toy")
    set_tensors(tmp_path / "out", **{"base_model.vera_B": None})
    with pytest.raises(IncompatibleError, match=r"lacks \['base_model.vera_B'\]"):
        read(tmp_path / "out", sites(toy), toy.BASE_DIGEST)


def test_a_pickle_is_never_loaded(lora, toy):
    (lora / WEIGHTS).rename(lora / "adapter_model.bin")
    with pytest.raises(IncompatibleError, match=r"only adapter_model.bin, and pickle is never"):
        read(lora, sites(toy), toy.BASE_DIGEST)


def test_a_truncated_file_is_refused(lora, toy):
    (lora / WEIGHTS).write_bytes((lora / WEIGHTS).read_bytes()[:-9])
    with pytest.raises(IncompatibleError, match="is not a safetensors file"):
        read(lora, sites(toy), toy.BASE_DIGEST)


@pytest.mark.parametrize("text", ["", "{", "[]", "nul", '{"r": 2}'])
def test_a_configuration_that_is_none_is_refused(text, lora, toy):
    (lora / CONFIG).write_text(text)
    with pytest.raises(IncompatibleError, match=CONFIG):
        read(lora, sites(toy), toy.BASE_DIGEST)


def test_an_adapter_for_another_base_names_both_digests(toy, tmp_path):
    adapter = toy.toy_adapter("lora", seed=1, rank=2, base_digest="c" * 64)
    write(adapter, tmp_path / "out", "toy")
    with pytest.raises(
        IncompatibleError, match=f"{'c' * 64}, but the artifact holds base {'b' * 64}"
    ):
        read(tmp_path / "out", sites(toy), toy.BASE_DIGEST)


def test_labels_must_match_the_rows(toy, tmp_path):
    adapter = toy.toy_adapter("lora", seed=1, rank=2, labels=("ham", "spam"))
    write(adapter, tmp_path / "out", "toy")
    with pytest.raises(IncompatibleError, match="3 labels are named, but the classifier has 2"):
        read(tmp_path / "out", sites(toy), toy.BASE_DIGEST, ("a", "b", "c"))


def test_an_existing_folder_is_not_overwritten(toy, lora):
    with pytest.raises(UsageError, match="exists already"):
        write(toy.toy_adapter("lora", seed=1, rank=2), lora, "toy")


def invoke(*arguments):
    return CliRunner().invoke(main, [str(each) for each in arguments], prog_name="compiler")


def contents_of(folder: Path):
    return {p: p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def answer(artifact, tenant):
    options = ("--tenant", tenant, "--max-new-tokens", "8")
    return invoke("run", artifact, "abcd", *options).stdout


@pytest.mark.parametrize("tenant", ["acme", "zeta", "third"])
def test_a_tenant_goes_out_and_comes_back_the_same(tenant, artifact, tmp_path):
    out = tmp_path / "out"
    exported = invoke("export-adapter", artifact, "--tenant", tenant, "--out", out, "--json")
    imported = invoke("import-adapter", out, "--into", artifact, "--tenant", "again", "--json")
    assert (exported.exit_code, imported.exit_code) == (0, 0), imported.stderr
    assert json.loads(exported.stdout)["schema_version"] == 1
    document = json.loads(imported.stdout)
    assert (document["base_checked"], document["tenant"]) == (True, "again")
    assert imported.stderr == ""
    assert invoke("verify", artifact).exit_code == 0
    folders = [artifact / "tenants" / name for name in (tenant, "again")]
    rows = [(folder / "row.safetensors").read_bytes() for folder in folders]
    assert rows[0] == rows[1]
    assert answer(artifact, "again") == answer(artifact, tenant) != answer(artifact, "base")


def test_a_classifier_goes_out_and_comes_back(classifier, tmp_path):
    artifact = Path(shutil.copytree(classifier, tmp_path / "toy"))
    out = tmp_path / "out"
    assert invoke("export-adapter", artifact, "--tenant", "spam", "--out", out).exit_code == 0
    assert invoke("import-adapter", out, "--into", artifact, "--tenant", "again").exit_code == 0
    assert read_adapter(artifact / "tenants" / "again").labels == ("ham", "spam")
    assert answer_labels(artifact, "again") == answer_labels(artifact, "spam")


def answer_labels(artifact, tenant):
    return invoke("run", artifact, "abcd", "--tenant", tenant).stdout


def test_a_base_that_cannot_be_checked_is_said_on_stderr(lora, artifact):
    result = invoke("import-adapter", lora, "--into", artifact, "--tenant", "again")
    assert result.exit_code == 0
    assert result.stdout == "imported again: lora, rank 2, 2 targets\n"
    assert "does not say which base it was trained on" in result.stderr


@pytest.mark.parametrize(
    ("tenant", "fields", "exit_code", "message"),
    [
        ("again", {"use_qalora": True}, 4, "sets use_qalora to true"),
        ("acme", {}, 2, "tenant 'acme' exists already"),
        ("../acme", {}, 2, "'../acme' cannot name a tenant"),
        ("base", {}, 2, "cannot name a tenant"),
    ],
)
def test_a_failed_import_leaves_the_artifact_as_it_was(
    tenant, fields, exit_code, message, lora, artifact
):
    set_field(lora, **fields)
    before = contents_of(artifact)
    result = invoke("import-adapter", lora, "--into", artifact, "--tenant", tenant)
    assert (result.exit_code, result.stdout) == (exit_code, "")
    assert message in result.stderr
    assert contents_of(artifact) == before


def test_export_names_the_tenants_that_there_are(artifact, tmp_path):
    result = invoke("export-adapter", artifact, "--tenant", "acne", "--out", tmp_path / "out")
    assert (result.exit_code, result.stdout) == (2, "")
    assert "unknown tenant 'acne'; tenants are acme, third, zeta" in result.stderr
    assert not (tmp_path / "out").exists()


def test_an_adapter_that_overflows_is_refused(lora, artifact):
    set_field(lora, lora_alpha=1e300)
    before = contents_of(artifact)
    result = invoke("import-adapter", lora, "--into", artifact, "--tenant", "huge")
    assert result.exit_code == 4
    assert "error: the adapter's update of 'layer.query' is too large for float32" in result.stderr
    assert contents_of(artifact) == before


@pytest.mark.parametrize("verb", ["export-adapter", "merge"])
def test_nothing_is_written_into_the_artifact_that_is_read(verb, artifact):
    before = contents_of(artifact)
    result = invoke(verb, artifact, "--tenant", "acme", "--out", artifact / "tenants" / "out")
    assert result.exit_code == 2
    assert "lies in the artifact" in result.stderr
    assert contents_of(artifact) == before


def test_an_adapter_that_is_missing_is_not_exported(artifact, tmp_path):
    (artifact / "tenants" / "acme" / "adapter.safetensors").unlink()
    result = invoke("export-adapter", artifact, "--tenant", "acme", "--out", tmp_path / "out")
    assert result.exit_code == 4
    assert "'tenants/acme/adapter.safetensors' is missing from the artifact" in result.stderr


def test_nothing_is_imported_into_a_damaged_artifact(lora, artifact):
    path = artifact / "model.onnx.data"
    damaged = bytearray(path.read_bytes())
    damaged[-1] ^= 1
    path.write_bytes(damaged)
    before = (artifact / "manifest.json").read_bytes()
    result = invoke("import-adapter", lora, "--into", artifact, "--tenant", "again")
    assert result.exit_code == 4
    assert "'model.onnx.data' is damaged" in result.stderr
    assert (artifact / "manifest.json").read_bytes() == before


def test_a_damaged_adapter_is_not_exported(artifact, tmp_path):
    path = artifact / "tenants" / "acme" / "adapter.safetensors"
    damaged = bytearray(path.read_bytes())
    damaged[-1] ^= 1
    path.write_bytes(damaged)
    result = invoke("export-adapter", artifact, "--tenant", "acme", "--out", tmp_path / "out")
    assert result.exit_code == 4
    assert "tenants/acme/adapter.safetensors' is damaged" in result.stderr
