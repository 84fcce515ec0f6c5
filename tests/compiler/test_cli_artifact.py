import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from compiler.cli import main


def invoke(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, [str(each) for each in arguments], prog_name="compiler")


def test_run_answers_as_the_base_model_by_default(shared_artifact: Path) -> None:
    result = invoke("run", shared_artifact, "abcd", "--max-new-tokens", "6", "--json")
    document = json.loads(result.stdout)
    assert result.exit_code == 0
    assert [each["tenant"] for each in document["results"]] == ["base"]


def test_run_pairs_tenants_and_prompts_in_one_batch(shared_artifact: Path) -> None:
    result = invoke(
        *("run", shared_artifact, "--max-new-tokens", "6", "--json"),
        *("--tenant", "acme", "abcd", "--tenant", "base", "efg", "--tenant", "zeta", "h"),
    )
    document = json.loads(result.stdout)
    rows = [(each["tenant"], each["prompt"]) for each in document["results"]]
    assert rows == [("acme", "abcd"), ("base", "efg"), ("zeta", "h")]
    assert document["schema_version"] == 1
    assert document["task"] == "causal_lm"
    assert set(document) >= {"load_seconds", "run_seconds"}


def test_run_gives_one_prompt_to_several_tenants(shared_artifact: Path) -> None:
    result = invoke("run", shared_artifact, "--tenant", "acme", "--tenant", "third", "abcd")
    assert [line.split(":")[0] for line in result.stdout.splitlines()] == ["acme", "third"]


def test_run_prints_a_single_answer_bare(shared_artifact: Path) -> None:
    options = ("--tenant", "acme", "--max-new-tokens", "4")
    text = invoke("run", shared_artifact, "abcd", *options).stdout
    found = json.loads(invoke("run", shared_artifact, "abcd", *options, "--json").stdout)
    assert text == found["results"][0]["text"] + "\n"


def test_run_labels_texts(classifier: Path) -> None:
    result = invoke("run", classifier, "--tenant", "spam", "abc", "--tenant", "topics", "abc")
    assert result.exit_code == 0
    tenants, labels, probabilities = zip(*map(str.split, result.stdout.splitlines()), strict=True)
    assert tenants == ("spam:", "topics:")
    assert labels[0] in ("ham", "spam")
    assert all(0 < float(each) <= 1 for each in probabilities)


def test_run_says_which_tenants_can_label(classifier: Path) -> None:
    result = invoke("run", classifier, "abc")
    assert result.exit_code == 2
    assert "hint: name one of the tenants: spam, topics\n" in result.stderr


def test_run_refuses_an_unknown_tenant(shared_artifact: Path) -> None:
    result = invoke("run", shared_artifact, "--tenant", "acne", "abcd")
    assert result.exit_code == 2
    assert result.stdout == ""
    assert result.stderr == (
        "error: unknown tenant 'acne'; tenants are acme, zeta, third\n\n"
        "hint: did you mean 'acme'?\n"
    )


def test_run_refuses_tenants_that_do_not_pair(shared_artifact: Path) -> None:
    result = invoke("run", shared_artifact, "--tenant", "acme", "--tenant", "zeta", "a", "b", "c")
    assert result.exit_code == 2
    assert result.stderr.startswith("error: 2 tenants are named for 3 prompts\n")


def test_run_refuses_a_damaged_artifact(artifact: Path) -> None:
    path = artifact / "model.onnx.data"
    path.write_bytes(path.read_bytes()[:-1])
    result = invoke("run", artifact, "abcd")
    assert result.exit_code == 4
    assert result.stderr.startswith("error: 'model.onnx.data' has ")


def test_inspect_shows_what_the_artifact_holds(shared_artifact: Path) -> None:
    assert (
        invoke("inspect", shared_artifact).stdout
        == """\
kind     unmerged
task     causal_lm
base     toy (bbbbbbbbbbbb)
format   fp32, exact
sites    2: 1 attention.query, 1 attention.value
size     0.0 MiB
tenants  3
  acme: lora, rank 2, 2 targets, 0.0 MiB
  zeta: dora, rank 5, 2 targets, 0.0 MiB
  third: ia3, 2 targets, 0.0 MiB
"""
    )


def test_inspect_prints_one_document(shared_artifact: Path) -> None:
    document = json.loads(invoke("inspect", shared_artifact, "--json").stdout)
    sizes = sum(p.stat().st_size for p in shared_artifact.rglob("*") if p.is_file())
    manifest = (shared_artifact / "manifest.json").stat().st_size
    assert document["schema_version"] == 1
    assert document["size_bytes"] == sizes - manifest
    folder = shared_artifact / "tenants" / "zeta"
    assert document["tenants"]["zeta"]["rank"] == 5
    assert document["tenants"]["zeta"]["size_bytes"] == sum(
        path.stat().st_size for path in folder.iterdir()
    )


def test_verify_counts_what_it_checked(classifier: Path) -> None:
    document = json.loads(invoke("verify", classifier, "--json").stdout)
    files = [path for path in classifier.rglob("*") if path.is_file()]
    assert document["verified"] is True
    assert document["files"] == len(files) - 1
    assert invoke("verify", classifier).stdout.startswith(f"verified: {len(files) - 1} files, ")


def test_verify_fails_with_its_own_exit_code(artifact: Path) -> None:
    (artifact / "config.json").unlink()
    result = invoke("verify", artifact)
    assert result.exit_code == 4
    assert result.stdout == ""
    assert result.stderr == (
        "error: 'config.json' is missing from the artifact\n\n"
        "hint: copy the artifact again from its source, or build it again\n"
    )


@pytest.mark.parametrize("verb", ["run", "inspect", "verify"])
def test_what_is_no_artifact_is_refused(tmp_path: Path, verb: str) -> None:
    result = invoke(verb, tmp_path / "absent", *(["a"] if verb == "run" else []))
    assert result.exit_code == 4
    assert "is not an artifact: it has no manifest.json" in result.stderr


@pytest.mark.parametrize("verb", ["run", "inspect", "verify"])
def test_help_has_an_example(verb: str) -> None:
    result = invoke(verb, "--help")
    assert result.exit_code == 0
    assert f"    compiler {verb} " in result.stdout


def test_help_lists_every_verb_with_its_summary() -> None:
    output = " ".join(invoke("--help").stdout.split())
    for verb in ("run", "inspect", "verify"):
        module = importlib.import_module(f"compiler.commands.{verb}")
        assert f"{verb} {(module.__doc__ or '').partition(chr(10))[0]}" in output


def test_an_unknown_command_is_answered_with_the_nearest() -> None:
    result = invoke("verfiy")
    assert result.exit_code == 2
    assert result.stderr.startswith("error: unknown command 'verfiy'; commands are ")
    assert result.stderr.endswith("\n\nhint: did you mean 'verify'?\n")


@pytest.mark.parametrize(
    ("arguments", "message", "command"),
    [
        (["--nonsense"], "no such option: --nonsense", "compiler"),
        (["run", "x", "y", "--temperature", "-1"], "invalid value for '--temperature'",
         "compiler run"),
        (["verify"], "missing argument 'artifact'", "compiler verify"),
        (["run", "x", "--tenant"], "option '--tenant' requires an argument", "compiler run"),
    ],
)  # fmt: skip
def test_bad_usage_names_the_help(arguments: list[str], message: str, command: str) -> None:
    result = invoke(*arguments)
    assert result.exit_code == 2
    assert result.stderr.lower().startswith(f"error: {message}")
    assert result.stderr.endswith(f"\n\nhint: try '{command} --help'\n")


def test_a_mistyped_option_is_answered_with_the_nearest() -> None:
    result = invoke("run", "--tenat", "acme")
    assert result.exit_code == 2
    assert result.stderr == "error: no such option: --tenat\n\nhint: did you mean '--tenant'?\n"


def test_the_commands_start_without_torch(shared_artifact: Path) -> None:
    code = (
        "import sys\n"
        "from compiler.cli import main\n"
        "main(sys.argv[1:], standalone_mode=False)\n"
        "print({'torch', 'transformers', 'onnx'} & set(sys.modules), file=sys.stderr)"
    )
    for arguments in (["--help"], ["run", shared_artifact, "ab"], ["verify", shared_artifact]):
        done = subprocess.run(
            [sys.executable, "-c", code, *map(str, arguments)],
            capture_output=True,
            text=True,
            check=True,
            env={**os.environ, "COLUMNS": "100"},
        )
        assert done.stderr.strip() == "set()"
