"""Fixtures that several test files share."""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import hypothesis
import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

REPOSITORY = Path(__file__).parent.parent
CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{{ message['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)

# Forking after the tokenizers' threads have started would make the library warn.
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

# What tests measure or build teaches the user's own plans nothing.
os.environ["PARETUNE_HOME"] = tempfile.mkdtemp(prefix="paretune-tests-")

# The same cases in every run, however busy the machine is.
hypothesis.settings.register_profile("repeatable", deadline=None, derandomize=True, database=None)
hypothesis.settings.load_profile("repeatable")


@pytest.fixture(scope="session")
def fixtures() -> Path:
    """The folder of real models and data; made once, see tests/fixtures/prepare.py."""
    folder = REPOSITORY / "build" / "fixtures"
    script = REPOSITORY / "tests" / "fixtures" / "prepare.py"
    subprocess.run([sys.executable, str(script), "--out", str(folder)], check=True)
    return folder


@pytest.fixture(scope="session")
def smollm2(fixtures: Path) -> Path:
    return fixtures / "smollm2"


@pytest.fixture(scope="session")
def minilm(fixtures: Path) -> Path:
    return fixtures / "minilm"


@pytest.fixture(scope="session")
def data(fixtures: Path) -> Path:
    return fixtures / "data"


@pytest.fixture
def write_tokenizer(tmp_path: Path) -> Callable[..., Path]:
    """Writes a tokenizer of single bytes, 256 and up special, into a folder of its own."""

    def write(template: str | None = CHATML, eos: str | None = "<|im_end|>") -> Path:
        folder = tmp_path / "tokenizer"
        folder.mkdir(exist_ok=True)
        alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
        vocabulary = {letter: number for number, letter in enumerate(alphabet)}
        backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        backend.decoder = decoders.ByteLevel()
        special = ["<|im_start|>", "<|im_end|>", "<|pad|>"]
        backend.add_special_tokens([AddedToken(token, special=True) for token in special])
        backend.save(str(folder / "tokenizer.json"))
        settings = {"eos_token": eos, "pad_token": "<|pad|>", "chat_template": template}
        (folder / "tokenizer_config.json").write_text(json.dumps(settings))
        return folder

    return write
