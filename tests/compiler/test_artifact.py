import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from compiler.artifact import publish, read_manifest, staging_folder, verify
from compiler.frozen_weights import base_bias, base_weight, read_array
from compiler.manifest import (
    MANIFEST,
    Manifest,
    SiteRecord,
    StoredArray,
    parse,
    render,
    tenant_name,
)
from compiler.quantized import QuantizedWeight, arrays, dequantize
from compiler.tenants import add_tenant, check_tenants, read_adapter, remove_tenant, tenant_folder
from planner.errors import IncompatibleError, UsageError


def files_of(folder: Path) -> list[str]:
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())


def contents_of(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in files_of(folder)}


def test_a_whole_artifact_verifies(shared_artifact: Path) -> None:
    manifest = verify(shared_artifact)
    check_tenants(shared_artifact, manifest)
    assert set(manifest.files) == set(files_of(shared_artifact)) - {MANIFEST}


def test_the_same_inputs_make_the_same_bytes(
    shared_artifact: Path, tmp_path: Path, toy: ModuleType
) -> None:
    again = toy.make_artifact(tmp_path / "again", toy.TENANTS)
    assert contents_of(again) == contents_of(shared_artifact)


def test_tenants_files_may_be_read_by_whoever_may_read_the_others(shared_artifact: Path) -> None:
    public = (shared_artifact / "config.json").stat().st_mode
    for path in shared_artifact.glob("tenants/*/*"):
        assert path.stat().st_mode == public


def test_a_flipped_bit_anywhere_is_noticed_and_the_file_named(artifact: Path) -> None:
    generator = np.random.default_rng(0)
    for name, whole in contents_of(artifact).items():
        for _ in range(8):
            damaged = bytearray(whole)
            damaged[generator.integers(len(whole))] ^= 1 << int(generator.integers(8))
            (artifact / name).write_bytes(damaged)
            with pytest.raises(IncompatibleError, match=Path(name).name):
                verify(artifact)
        (artifact / name).write_bytes(whole)
    verify(artifact)


def test_a_truncated_file_is_noticed_and_named(artifact: Path) -> None:
    for name, whole in contents_of(artifact).items():
        (artifact / name).write_bytes(whole[:-1])
        reason = "" if name == MANIFEST else f"' has {len(whole) - 1} bytes"
        with pytest.raises(IncompatibleError, match=Path(name).name + reason):
            verify(artifact)
        (artifact / name).write_bytes(whole)


def test_a_missing_file_is_noticed_and_named(artifact: Path) -> None:
    for name, whole in contents_of(artifact).items():
        (artifact / name).unlink()
        with pytest.raises(IncompatibleError, match=Path(name).name):
            verify(artifact)
        (artifact / name).write_bytes(whole)


@pytest.mark.parametrize("name", ["extra.bin", "tenants/acme/extra.bin", "tenants/eve/row.bin"])
def test_a_file_that_the_manifest_does_not_name_is_refused(artifact: Path, name: str) -> None:
    (artifact / name).parent.mkdir(exist_ok=True)
    (artifact / name).write_bytes(b"")
    with pytest.raises(IncompatibleError, match=f"'{name}' does not belong"):
        verify(artifact)


def test_a_symbolic_link_is_refused_even_to_the_same_bytes(artifact: Path, tmp_path: Path) -> None:
    shutil.move(artifact / "model.onnx.data", tmp_path / "elsewhere")
    (artifact / "model.onnx.data").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(IncompatibleError, match=r"'model.onnx.data' is a symbolic link"):
        verify(artifact)


def test_a_pipe_is_refused_and_not_read(artifact: Path) -> None:
    (artifact / "config.json").unlink()
    os.mkfifo(artifact / "config.json")
    with pytest.raises(IncompatibleError, match=r"'config.json' is not a regular file"):
        verify(artifact)


def test_a_folder_without_a_manifest_is_no_artifact(tmp_path: Path) -> None:
    with pytest.raises(IncompatibleError, match=r"it has no manifest.json"):
        verify(tmp_path)


def test_a_manifest_reads_back_equal(shared_artifact: Path) -> None:
    manifest = read_manifest(shared_artifact)
    assert parse(render(manifest)) == manifest


@pytest.mark.parametrize("data", [b"", b"[]", b"{}", b"null", b"[" * 100_000, b"\xff"])
def test_what_is_not_a_manifest_is_refused(data: bytes) -> None:
    with pytest.raises(IncompatibleError, match=r"manifest.json"):
        parse(data)


@pytest.mark.parametrize("path", ["../x", "/etc/passwd", "a/../../x", "a\\..\\x", "./a", "a//b"])
def test_a_manifest_cannot_name_a_file_outside_the_artifact(
    shared_artifact: Path, path: str
) -> None:
    manifest = read_manifest(shared_artifact)
    files = {path: next(iter(manifest.files.values()))}
    with pytest.raises(IncompatibleError, match="not a plain relative path"):
        parse(render(manifest.model_copy(update={"files": files})))


@pytest.mark.parametrize(
    "name",
    ["", ".", "..", "../acme", "/acme", "a/b", "a\\b", "Acme", "-a", ".a", "ä", "a b", "a\n",
     "base", "x" * 65, "%2e%2e", "c:", "a\0"],
)  # fmt: skip
def test_a_name_that_is_a_path_or_reserved_cannot_name_a_tenant(name: str) -> None:
    with pytest.raises(UsageError, match="cannot name a tenant"):
        tenant_name(name)


@pytest.mark.parametrize("name", ["a", "0", "acme-2.eu_west", "x" * 64, "manifest.json"])
def test_plain_names_can_name_a_tenant(name: str) -> None:
    assert tenant_name(name) == name


def test_publishing_refuses_an_existing_folder_and_leaves_both(
    artifact: Path, toy: ModuleType
) -> None:
    before = contents_of(artifact)
    staging = toy.stage_artifact(artifact, {}, "causal_lm")
    with pytest.raises(UsageError, match="exists already"):
        publish(staging, artifact)
    assert contents_of(artifact) == before
    assert staging.is_dir()


def test_publishing_replaces_an_artifact_when_told_to(artifact: Path, toy: ModuleType) -> None:
    staging = toy.stage_artifact(artifact, {}, "causal_lm")
    publish(staging, artifact, replace=True)
    assert verify(artifact).tenants == {}
    assert [path.name for path in artifact.parent.iterdir()] == [artifact.name]


def test_publishing_never_replaces_what_is_no_artifact(tmp_path: Path, toy: ModuleType) -> None:
    out = tmp_path / "home"
    out.mkdir()
    (out / "thesis.txt").write_text("precious", "utf-8")
    staging = toy.stage_artifact(out, {}, "causal_lm")
    with pytest.raises(UsageError, match="is not an artifact"):
        publish(staging, out, replace=True)
    assert files_of(out) == ["thesis.txt"]


def test_what_does_not_verify_is_not_published(tmp_path: Path, toy: ModuleType) -> None:
    out = tmp_path / "out"
    staging = toy.stage_artifact(out, {}, "causal_lm")
    (staging / "config.json").write_text("{}", "utf-8")
    with pytest.raises(IncompatibleError, match=r"config.json"):
        publish(staging, out)
    assert not out.exists()


def test_base_weights_are_read_where_the_manifest_says(
    shared_artifact: Path, toy: ModuleType
) -> None:
    manifest, drawn = read_manifest(shared_artifact), toy.weights("causal_lm")
    for site in ("layer.query", "layer.value"):
        found = base_weight(shared_artifact, manifest, site)
        np.testing.assert_array_equal(found, drawn[f"{site}.weight"])
    bias = base_bias(shared_artifact, manifest, "layer.query")
    np.testing.assert_array_equal(bias, drawn["layer.query.bias"])
    assert base_bias(shared_artifact, manifest, "layer.value") is None


def store(
    folder: Path, parts: dict[str, np.ndarray], types: dict[str, str]
) -> dict[str, StoredArray]:
    """Writes the parts one after the other, as external data is."""
    stored, at = {}, 0
    with (folder / "weights").open("wb") as stream:
        for name, part in parts.items():
            stream.write(part.tobytes())
            record = {"file": "weights", "offset_bytes": at, "length_bytes": part.nbytes}
            record |= {"dtype": types.get(name, str(part.dtype)), "shape": part.shape}
            stored[name] = StoredArray.model_validate(record)
            at += part.nbytes
    return stored


def with_site(
    manifest: Manifest, shape: tuple[int, int], weight: dict[str, StoredArray]
) -> Manifest:
    site = SiteRecord(
        name="s", role="linear", out_features=shape[0], in_features=shape[1], weight=weight
    )
    return manifest.model_copy(update={"sites": (site,)})


def test_a_four_bit_weight_is_dequantised(shared_artifact: Path, tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    quantized = QuantizedWeight(
        shape=(5, 99),
        codes=generator.integers(0, 256, 248, np.uint8),
        absmax=generator.integers(0, 256, 8, np.uint8),
        codebook=generator.normal(size=16).astype(np.float32),
        nested_absmax=generator.normal(size=1).astype(np.float32),
        nested_codebook=generator.normal(size=256).astype(np.float32),
        offset=generator.normal(size=1).astype(np.float32),
    )
    stored = store(tmp_path, arrays(quantized), {})
    manifest = with_site(read_manifest(shared_artifact), (5, 99), stored)
    np.testing.assert_array_equal(base_weight(tmp_path, manifest, "s"), dequantize(quantized))


def test_a_bfloat16_weight_is_widened(shared_artifact: Path, tmp_path: Path) -> None:
    exact = np.array([[1.0, -0.5, 3.0], [0.0, 1e30, -(2.0**-100)]], np.float32)
    exact = (exact.view(np.uint32) >> 16 << 16).view(np.float32)
    halves = {"weight": (exact.view(np.uint32) >> 16).astype(np.uint16)}
    stored = store(tmp_path, halves, {"weight": "bfloat16"})
    manifest = with_site(read_manifest(shared_artifact), (2, 3), stored)
    np.testing.assert_array_equal(base_weight(tmp_path, manifest, "s"), exact)


@pytest.mark.parametrize(
    "change", [{"shape": (2**40, 2**20)}, {"offset_bytes": 8}, {"length_bytes": 2**50}]
)
def test_sizes_are_checked_before_memory_is_taken(
    tmp_path: Path, change: dict[str, object]
) -> None:
    stored = store(tmp_path, {"weight": np.zeros((2, 3), np.float32)}, {})["weight"]
    with pytest.raises(IncompatibleError, match="cannot hold"):
        read_array(tmp_path, stored.model_copy(update=change))


def test_an_added_tenant_leaves_all_other_files_as_they_were(
    artifact: Path, toy: ModuleType
) -> None:
    before = contents_of(artifact)
    add_tenant(artifact, "new", toy.toy_adapter("lora", seed=9, rank=3))
    manifest, after = verify(artifact), contents_of(artifact)
    check_tenants(artifact, manifest)
    assert manifest.tenants["new"].order == 4
    assert {n: data for n, data in after.items() if n in before and n != MANIFEST} == {
        n: data for n, data in before.items() if n != MANIFEST
    }
    remove_tenant(artifact, "new")
    assert contents_of(artifact) == before


def test_a_removed_tenant_leaves_all_other_files_as_they_were(artifact: Path) -> None:
    before = contents_of(artifact)
    remove_tenant(artifact, "zeta")
    after = contents_of(artifact)
    assert set(before) - set(after) == {
        "tenants/zeta/adapter.safetensors",
        "tenants/zeta/row.safetensors",
    }
    assert all(before[name] == data for name, data in after.items() if name != MANIFEST)
    assert list(verify(artifact).tenants) == ["acme", "third"]


def test_a_tenant_can_be_put_back_from_its_own_adapter(artifact: Path, tmp_path: Path) -> None:
    before = contents_of(artifact)
    shutil.copytree(artifact / tenant_folder("third"), tmp_path / "third")
    remove_tenant(artifact, "third")
    add_tenant(artifact, "third", read_adapter(tmp_path / "third"))
    assert contents_of(artifact) == before


@pytest.mark.parametrize("name", ["../acme", "base", "acme"])
def test_a_tenant_with_an_impossible_name_changes_nothing(
    artifact: Path, toy: ModuleType, name: str
) -> None:
    before = contents_of(artifact)
    with pytest.raises(UsageError, match=name):
        add_tenant(artifact, name, toy.TENANTS["acme"])
    assert contents_of(artifact) == before


def test_a_tenant_of_another_base_is_refused_naming_both(artifact: Path, toy: ModuleType) -> None:
    before = contents_of(artifact)
    foreign = replace(toy.TENANTS["acme"], base_digest="f" * 64)
    with pytest.raises(IncompatibleError, match=r"base f{12}, but the artifact holds base b{12}"):
        add_tenant(artifact, "new", foreign)
    assert contents_of(artifact) == before


def test_a_tenant_whose_file_is_missing_or_damaged_is_refused(artifact: Path) -> None:
    with pytest.raises(UsageError, match="there is no adapter at"):
        read_adapter(artifact / "nowhere")
    path = artifact / tenant_folder("acme") / "adapter.safetensors"
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(IncompatibleError, match="is not a safetensors file"):
        read_adapter(path)


def test_removing_an_unknown_tenant_lists_the_known(artifact: Path) -> None:
    with pytest.raises(UsageError, match="unknown tenant 'acne'; tenants are acme, third, zeta"):
        remove_tenant(artifact, "acne")


def test_a_merged_artifact_keeps_its_one_tenant(tmp_path: Path, toy: ModuleType) -> None:
    merged = toy.make_merged(tmp_path / "merged", "acme", toy.TENANTS["acme"])
    with pytest.raises(IncompatibleError, match="takes no other"):
        add_tenant(merged, "new", toy.TENANTS["acme"])
    with pytest.raises(IncompatibleError, match="cannot lose it"):
        remove_tenant(merged, "acme")


def test_tenants_added_at_the_same_time_are_all_there(artifact: Path, toy: ModuleType) -> None:
    adapter, names = toy.TENANTS["acme"], [f"new-{number}" for number in range(8)]
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda name: add_tenant(artifact, name, adapter), names))
    assert set(verify(artifact).tenants) == {*names, *toy.TENANTS}


KILLED = """
import os, shutil, signal, sys
from pathlib import Path
from compiler import artifact, tenants

verb, source, work = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
adapter = tenants.read_adapter(source / "tenants/acme")
WRITES = ("os.rename", "os.mkdir", "os.rmdir", "os.remove", "shutil.rmtree")

def act(folder):
    if verb == "add":
        tenants.add_tenant(folder, "new", adapter)
    elif verb == "remove":
        tenants.remove_tenant(folder, "acme")
    else:
        artifact.publish(folder.with_name("staged"), folder, replace=verb == "replace")

def die_at(moment):
    seen = 0
    def hook(event, arguments):
        nonlocal seen
        writes = event == "open" and isinstance(arguments[1], str) and "w" in arguments[1]
        if event in WRITES or writes:
            seen += 1
            if seen > moment:
                os.kill(os.getpid(), signal.SIGKILL)
    sys.addaudithook(hook)

moment, status = 0, 1
while status:
    shutil.rmtree(work, ignore_errors=True)
    folder = work / "toy"
    if verb != "publish":
        shutil.copytree(source, folder)
    shutil.copytree(source, work / "staged")
    child = os.fork()
    if child == 0:
        die_at(moment)
        act(folder)
        os._exit(0)
    status = os.waitpid(child, 0)[1]
    whole = {"acme", "third", "zeta"}
    if folder.exists():
        found = set(artifact.verify(folder).tenants)
        assert found in (whole, whole | {"new"}, whole - {"acme"}), found
    elif verb in ("add", "remove"):
        raise AssertionError("the artifact is gone")
    if verb in ("add", "remove"):
        if found == whole:
            act(folder)
        tenants.add_tenant(folder, "later", adapter)
        assert not [path.name for path in folder.iterdir() if path.name.startswith(".")]
        assert "later" in artifact.verify(folder).tenants
    moment += 1
print(moment)
"""


@pytest.mark.parametrize(
    ("verb", "moments"), [("add", 8), ("remove", 6), ("publish", 1), ("replace", 4)]
)
def test_a_kill_at_any_moment_leaves_a_whole_artifact(
    shared_artifact: Path, tmp_path: Path, verb: str, moments: int
) -> None:
    """Each file-system event in turn is where a SIGKILL strikes, until none is left."""
    done = subprocess.run(
        [sys.executable, "-c", KILLED, verb, str(shared_artifact), str(tmp_path / "work")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > moments


def test_the_staging_folder_is_beside_the_artifact(tmp_path: Path) -> None:
    assert staging_folder(tmp_path / "faq").parent == tmp_path
