from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from compiler.data import IGNORED, Example, encode, read
from compiler.tokenizer import Tokenizer, load
from planner.errors import UsageError

USER = {"role": "user", "content": "Hi"}
REPLY = {"role": "assistant", "content": "Yo"}
CHAT = {"messages": [USER, REPLY]}
PAIR = {"prompt": "p", "completion": "c"}
DEFAULT_SYSTEM = (
    "{% for m in messages %}{% if loop.first and m['role'] != 'system' %}"
    "{{ '<|im_start|>system\nHelp.<|im_end|>\n' }}{% endif %}"
    "{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
WITHOUT_END = (
    "{% for m in messages %}{{ m['role'][0] + ':' + m['content'] + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}a:{% endif %}"
)
LAST_ONLY = "{{ messages[-1]['content'] }}{% if add_generation_prompt %}>{% endif %}"
Write = Callable[[Sequence[object]], Path]
WriteTokenizer = Callable[..., Path]


def shown(tokenizer: Tokenizer, example: Example, *, trained: bool) -> str:
    """The text of the tokens that the loss counts, or of those it does not."""
    chosen = example.input_ids[(example.labels != IGNORED) == trained].tolist()
    return tokenizer.backend.decode(chosen, skip_special_tokens=False)


def encoded(write: Write, tokenizer: Tokenizer, line: object, length: int = 1_000) -> Example:
    (example,) = encode(read(write([line]), "causal_lm"), tokenizer, length).examples
    return example


def test_only_replies_are_trained_with_the_token_that_ends_them(
    write: Write, write_tokenizer: WriteTokenizer
) -> None:
    tokenizer = load(write_tokenizer())
    line = {"messages": [USER, REPLY, {"role": "user", "content": "More"}, REPLY, USER]}
    example = encoded(write, tokenizer, line)
    assert shown(tokenizer, example, trained=True) == "Yo<|im_end|>Yo<|im_end|>"
    assert shown(tokenizer, example, trained=False) == (
        "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
        "\n<|im_start|>user\nMore<|im_end|>\n<|im_start|>assistant\n"
    )


def test_template_may_add_a_system_message(write: Write, write_tokenizer: WriteTokenizer) -> None:
    tokenizer = load(write_tokenizer(DEFAULT_SYSTEM))
    example = encoded(write, tokenizer, CHAT)
    assert shown(tokenizer, example, trained=True) == "Yo<|im_end|>"
    assert shown(tokenizer, example, trained=False).startswith(
        "<|im_start|>system\nHelp.<|im_end|>"
    )


def test_end_is_appended_where_the_template_has_none(
    write: Write, write_tokenizer: WriteTokenizer
) -> None:
    tokenizer = load(write_tokenizer(WITHOUT_END))
    example = encoded(write, tokenizer, CHAT)
    assert shown(tokenizer, example, trained=True) == "Yo\n<|im_end|>"
    assert shown(tokenizer, example, trained=False) == "u:Hi\na:"


def test_template_that_rewrites_the_conversation_is_refused(
    write: Write, write_tokenizer: WriteTokenizer
) -> None:
    with pytest.raises(UsageError, match=r"data.jsonl:1: message 2: .* does not begin"):
        encoded(write, load(write_tokenizer(LAST_ONLY)), CHAT)


def test_lines_that_a_template_refuses_are_reported_together(
    write: Write, write_tokenizer: WriteTokenizer
) -> None:
    template = (
        "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}"
    )
    line = {"messages": [{"role": "system", "content": "S"}, USER, REPLY]}
    with pytest.raises(UsageError, match="2 of 2 lines") as caught:
        encode(
            read(write([line, line]), "causal_lm"),
            load(write_tokenizer(template)),
            sequence_length=9,
        )
    assert "data.jsonl:1-2: the chat template refuses the messages: no system" in str(caught.value)


@pytest.mark.parametrize(
    ("line", "prompt", "trained"),
    [
        (PAIR, "p", "c<|im_end|>"),
        ({"instruction": "Add", "input": "1", "output": "2"}, "Add\n\n1", "\n\n2<|im_end|>"),
        ({"instruction": "Add", "output": "2", "system": "S"}, "S\n\nAdd", "\n\n2<|im_end|>"),
        ({"text": "running"}, "", "running<|im_end|>"),
    ],
)
def test_without_chat_template_prompt_and_completion_are_joined(
    write: Write, write_tokenizer: WriteTokenizer, line: object, prompt: str, trained: str
) -> None:
    tokenizer = load(write_tokenizer(None))
    example = encoded(write, tokenizer, line)
    assert shown(tokenizer, example, trained=True) == trained
    assert shown(tokenizer, example, trained=False) == prompt


def test_template_is_chat_only_where_there_is_one_and_never_for_running_text(
    write: Write, write_tokenizer: WriteTokenizer
) -> None:
    pair, running = [PAIR], [{"text": "t"}]
    chats, plain = load(write_tokenizer()), load(write_tokenizer(None))
    records = read(write(pair), "causal_lm")
    assert encode(records, load(write_tokenizer()), 99).template == "chat"
    assert encode(records, plain, 99).template == "text"
    assert encode(read(write(running), "causal_lm"), chats, 99).template == "text"


def test_missing_end_token_is_a_usage_error(write: Write, write_tokenizer: WriteTokenizer) -> None:
    with pytest.raises(UsageError, match="no end-of-sequence token"):
        encoded(write, load(write_tokenizer(None, eos=None)), PAIR)


def test_chat_of_a_real_template_equals_transformers(write: Write, smollm2: Path) -> None:
    tokenizer = load(smollm2)
    theirs = AutoTokenizer.from_pretrained(smollm2)
    example = encoded(write, tokenizer, {"prompt": "Define: dog", "completion": "an animal"})
    turns = [
        {"role": "user", "content": "Define: dog"},
        {"role": "assistant", "content": "an animal"},
    ]
    whole = theirs.apply_chat_template(turns).input_ids
    # The template ends with a newline after the token that ends the reply.
    assert example.input_ids.tolist() == whole[:-1]
    assert shown(tokenizer, example, trained=True) == "an animal<|im_end|>"


def test_reply_that_melts_into_the_template_is_refused(write: Write, smollm2: Path) -> None:
    with pytest.raises(UsageError, match=r"message 2: .* strip the white space around it"):
        encoded(write, load(smollm2), {"prompt": "p", "completion": "\n\n  c"})


def test_long_lines_lose_their_end_and_then_are_left_out(
    write: Write, write_tokenizer: WriteTokenizer
) -> None:
    tokenizer = load(write_tokenizer(None))
    long, short = {"prompt": "p" * 9, "completion": "c"}, {"prompt": "pp", "completion": "cccc"}
    found = encode(read(write([long, short, PAIR]), "causal_lm"), tokenizer, 4)
    assert [tokenizer.decode(e.input_ids.tolist()) for e in found.examples] == ["ppcc", "pc"]
    assert found.notes() == [
        "1 examples are cut to the sequence length",
        "1 lines are left out: their prompts fill the whole length",
    ]
    with pytest.raises(UsageError, match="has a reply within 4 tokens"):
        encode(read(write([long]), "causal_lm"), tokenizer, 4)


def test_running_text_goes_on_in_the_next_example(
    write: Write, write_tokenizer: WriteTokenizer
) -> None:
    tokenizer = load(write_tokenizer(None))
    found = encode(read(write([{"text": "abcdefg"}]), "causal_lm"), tokenizer, 3)
    assert [tokenizer.decode(e.input_ids.tolist()) for e in found.examples] == ["abc", "def", "g"]
    assert {e.group for e in found.examples} == {0}
    assert found.notes() == []


def test_classes_are_sorted_and_fixed_for_held_out_data(
    write: Write, write_tokenizer: WriteTokenizer
) -> None:
    tokenizer = load(write_tokenizer())
    lines = [{"text": "a", "label": 10}, {"text": "b", "label": 9}, {"text": "ccc", "label": 9}]
    records = read(write(lines), "sequence_classification")
    found = encode(records, tokenizer, 2)
    assert found.labels == ("9", "10")
    assert [int(e.labels) for e in found.examples] == [1, 0, 0]
    assert found.truncated == 1
    assert [int(e.labels) for e in encode(records, tokenizer, 9, labels=("10", "9")).examples] == [
        0,
        1,
        1,
    ]
    with pytest.raises(UsageError, match="unknown label '9'; labels are 1, 10"):
        encode(records, tokenizer, 9, labels=("1", "10"))
    with pytest.raises(UsageError, match="has the same label: 9"):
        encode(records[1:], tokenizer, 9)


def test_classified_text_keeps_its_special_tokens_when_cut(write: Write, minilm: Path) -> None:
    tokenizer = load(minilm)
    lines = [{"text": "one two three four five", "label": "a"}, {"text": "x", "label": "b"}]
    found = encode(read(write(lines), "sequence_classification"), tokenizer, 5)
    assert found.examples[0].input_ids.tolist() == [101, 2028, 2048, 2093, 102]
