import json
from collections.abc import Callable
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from compiler import tokenizer
from planner.errors import UsageError

TEXTS = [
    "Hello world",
    "  Åke\n\n 3 ägg\t",
    "",
    "日本語 🎉 e\u0301",
    "x <|im_end|> [SEP] y",
    "a" * 90,
]
CONVERSATION = [
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": " Hello\n"},
    {"role": "user", "content": "Say <|im_end|>"},
]
WITH_SYSTEM = [{"role": "system", "content": "Be brief."}, *CONVERSATION]


@pytest.mark.parametrize("model", ["smollm2", "minilm"])
def test_ids_and_text_equal_transformers(fixtures: Path, model: str) -> None:
    ours = tokenizer.load(fixtures / model)
    theirs = AutoTokenizer.from_pretrained(fixtures / model)
    for text in TEXTS:
        ids = theirs(text).input_ids
        assert ours.encode(text) == ids
        assert ours.decode(ids) == theirs.decode(ids, skip_special_tokens=True)
        cut = theirs(text, truncation=True, max_length=4).input_ids
        assert ours.encode(text, max_length=4) == cut


@pytest.mark.parametrize("messages", [CONVERSATION, WITH_SYSTEM], ids=["no system", "system"])
@pytest.mark.parametrize("prompt", [True, False])
def test_chat_equals_transformers(
    smollm2: Path, messages: list[dict[str, str]], prompt: bool
) -> None:
    ours = tokenizer.load(smollm2)
    theirs = AutoTokenizer.from_pretrained(smollm2)
    expected = theirs.apply_chat_template(messages, add_generation_prompt=prompt, tokenize=False)
    assert ours.chat(messages, add_generation_prompt=prompt) == expected
    ids = theirs.apply_chat_template(messages, add_generation_prompt=prompt).input_ids
    assert ours.encode(expected, special_tokens=False) == ids


def test_smollm2_ends_and_pads_with_its_end_of_turn_token(smollm2: Path) -> None:
    ours = tokenizer.load(smollm2)
    assert (ours.eos_id, ours.pad_id) == (2, 2)


def test_prompt_is_a_user_turn_where_the_model_chats(
    write_tokenizer: Callable[..., Path],
) -> None:
    ours = tokenizer.load(write_tokenizer())
    assert ours.backend.decode(
        ours.prompt("Hi", "chat", system="S"), skip_special_tokens=False
    ) == (
        "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    )
    assert ours.decode(ours.prompt("Hi", "text")) == "Hi"


def test_template_file_goes_before_the_one_in_the_settings(
    write_tokenizer: Callable[..., Path],
) -> None:
    folder = write_tokenizer()
    (folder / "chat_template.jinja").write_text("{{ messages[0]['content'] | tojson }}")
    assert tokenizer.load(folder).chat([{"role": "user", "content": "<å>"}]) == '"<å>"'


def test_generation_blocks_render_as_their_body(write_tokenizer: Callable[..., Path]) -> None:
    folder = write_tokenizer("a{% generation %}b{% endgeneration %}c")
    assert tokenizer.load(folder).chat([]) == "abc"


def test_named_templates_give_the_default_one(write_tokenizer: Callable[..., Path]) -> None:
    folder = write_tokenizer()
    named = [{"name": "rag", "template": "r"}, {"name": "default", "template": "d"}]
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": named}))
    assert tokenizer.load(folder).chat([]) == "d"


def test_end_tokens_come_from_the_configs_too(write_tokenizer: Callable[..., Path]) -> None:
    folder = write_tokenizer()
    (folder / "generation_config.json").write_text('{"eos_token_id": [256, 257]}')
    (folder / "config.json").write_text('{"eos_token_id": 5, "pad_token_id": 9}')
    ours = tokenizer.load(folder)
    assert ours.eos_ids == (257, 256, 5)
    assert ours.pad_id == 258


@pytest.mark.parametrize("template", ["{% if %}", "{% break %}", "{% unknown %}"])
def test_template_that_does_not_compile_is_a_usage_error(
    write_tokenizer: Callable[..., Path], template: str
) -> None:
    with pytest.raises(UsageError, match="does not compile"):
        tokenizer.load(write_tokenizer(template))


def test_template_that_fails_is_a_usage_error(write_tokenizer: Callable[..., Path]) -> None:
    ours = tokenizer.load(write_tokenizer("{{ 'a' + 1 }}"))
    with pytest.raises(UsageError, match="refuses the messages: can only concatenate str"):
        ours.chat(CONVERSATION)


def test_refusing_template_is_a_usage_error(write_tokenizer: Callable[..., Path]) -> None:
    ours = tokenizer.load(write_tokenizer("{{ raise_exception('roles must alternate') }}"))
    with pytest.raises(UsageError, match="refuses the messages: roles must alternate"):
        ours.chat(CONVERSATION)


def test_a_template_cannot_reach_python(write_tokenizer: Callable[..., Path]) -> None:
    ours = tokenizer.load(write_tokenizer("{{ messages.__class__.__mro__ }}"))
    with pytest.raises(UsageError, match="unsafe"):
        ours.chat(CONVERSATION)


def test_chat_without_a_template_is_a_usage_error(write_tokenizer: Callable[..., Path]) -> None:
    with pytest.raises(UsageError, match="no chat template"):
        tokenizer.load(write_tokenizer(None)).chat(CONVERSATION)


def test_text_with_half_a_surrogate_pair_is_a_usage_error(
    write_tokenizer: Callable[..., Path],
) -> None:
    with pytest.raises(UsageError, match=r"lone surrogate U\+D83D at character 1"):
        tokenizer.load(write_tokenizer()).encode("a\ud83d")


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("tokenizer.json", None, "no tokenizer.json in"),
        ("tokenizer.json", "{}", "is not a tokenizer"),
        ("tokenizer.json", '{"version": "1.0"', "is not a tokenizer"),
        ("tokenizer_config.json", "{", "is not JSON"),
        ("tokenizer_config.json", "[]", "is not a JSON object"),
    ],
)
def test_bad_file_is_a_usage_error(
    write_tokenizer: Callable[..., Path], name: str, content: str | None, reason: str
) -> None:
    folder = write_tokenizer()
    (folder / name).unlink()
    if content is not None:
        (folder / name).write_text(content)
    with pytest.raises(UsageError, match=reason):
        tokenizer.load(folder)
