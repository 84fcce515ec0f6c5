import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer

from compiler.data import (
    IGNORED,
    Chat,
    Completion,
    Example,
    Labelled,
    Text,
    batch_count,
    batches,
    encode,
    pack,
    read,
    split,
)
from compiler.data.encode import prompt_of
from compiler.data.problems import SHOWN
from compiler.data.record import Message
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


@pytest.fixture
def write(tmp_path: Path) -> Callable[[Sequence[object]], Path]:
    """Writes one line per item: bytes as they are, anything else as JSON."""

    def write_lines(lines: Sequence[object]) -> Path:
        path = tmp_path / "data.jsonl"
        raw = [line if isinstance(line, bytes) else json.dumps(line).encode() for line in lines]
        path.write_bytes(b"\n".join(raw) + b"\n")
        return path

    return write_lines


Write = Callable[[Sequence[object]], Path]
WriteTokenizer = Callable[..., Path]


@pytest.mark.parametrize(
    ("line", "content"),
    [
        (CHAT, Chat((Message("user", "Hi"), Message("assistant", "Yo")))),
        (
            {
                "system": "S",
                "conversations": [
                    {"from": "human", "value": "Hi"},
                    {"from": "gpt", "value": "Yo"},
                ],
            },
            Chat((Message("system", "S"), Message("user", "Hi"), Message("assistant", "Yo"))),
        ),
        (
            {"instruction": "Add", "input": "1 2", "output": "3", "id": 7},
            Completion("Add\n\n1 2", "3", separator="\n\n"),
        ),
        (
            {"instruction": "Add", "input": "", "output": "3", "text": "Add 3"},
            Completion("Add", "3", separator="\n\n"),
        ),
        (PAIR, Completion("p", "c")),
        ({**PAIR, "system": "S"}, Completion("p", "c", system="S")),
        ({"text": "running"}, Text("running")),
    ],
)
def test_formats_of_causal_models(write: Write, line: object, content: object) -> None:
    assert [record.content for record in read(write([line]), "causal_lm")] == [content]


def test_labels_are_names_or_numbers(write: Write) -> None:
    lines = [{"text": "a", "label": 1}, {"text": "b", "label": 0}]
    records = read(write(lines), "sequence_classification")
    assert [record.content for record in records] == [Labelled("a", 1), Labelled("b", 0)]


def test_blank_lines_byte_order_mark_and_windows_line_ends_are_skipped(write: Write) -> None:
    path = write([b"\xef\xbb\xbf" + json.dumps(PAIR).encode() + b"\r", b"  ", b"", PAIR])
    assert [record.line for record in read(path, "causal_lm")] == [1, 4]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"{", "not JSON: Expecting property name enclosed in double quotes at position 2"),
        (b'{"prompt": "a\xff"}', "not UTF-8: byte 0xff at position 14"),
        (b"\xff\xfe{\x00", "not UTF-8: byte 0xff at position 1"),
        (b"[" * 100_000, "not usable JSON: nested too deeply"),
        (b'{"prompt": ' + b"9" * 5_000 + b"}", "not usable JSON: Exceeds the limit"),
        (b'{"text": "a", "text": "b"}', "key 'text' is given twice"),
        ([1], "a list, not an object"),
        (None, "null, not an object"),
        ("text", "a string, not an object"),
        ({"q": "", "a": ""}, "no format has the keys a, q; formats are messages, conversations,"),
        ({"prompt": "p"}, "prompt/completion line has no 'completion'"),
        ({"instruction": "i", "input": "x"}, "instruction/output line has no 'output'"),
        ({"mesages": []}, "unknown key 'mesages'; did you mean 'messages'?"),
        ({"prompt": 3, "completion": "c"}, "'prompt' is a number, not a string"),
        ({"prompt": "p", "completion": None}, "'completion' is null, not a string"),
        ({"prompt": "p", "completion": " \n"}, "'completion' is empty"),
        ({"prompt": "", "completion": "c"}, "'prompt' is empty"),
        ({"instruction": "i", "input": 1, "output": "o"}, "'input' is a number"),
        ({"prompt": "p", "completion": "\ud83d"}, "half a surrogate pair"),
        ({"text": ""}, "'text' is empty"),
        ({"messages": []}, "'messages' is not a list of messages"),
        ({"messages": [USER]}, "no assistant message, so nothing to train on"),
        ({"messages": [USER, "x"]}, "message 2 is a string, not an object"),
        ({"messages": [{"content": "Hi"}, REPLY]}, "message 1: no 'role'"),
        (
            {"messages": [{"role": "bard", "content": "Hi"}, REPLY]},
            "message 1: unknown role 'bard'",
        ),
        (
            {"messages": [USER, {"role": "assistant", "content": ""}]},
            "message 2: 'content' is empty",
        ),
        ({"messages": [USER, {**REPLY, "tool_calls": [1]}]}, "message 2: 'tool_calls' is not supp"),
        ({**PAIR, "history": [["a", "b"]]}, "'history' is not supported"),
        ({"text": "t", "label": "l"}, "text/label line, but task causal_lm takes chat messages,"),
    ],
)
def test_bad_line_is_named_with_its_reason(write: Write, line: object, reason: str) -> None:
    path = write([line])
    with pytest.raises(UsageError, match=reason) as caught:
        read(path, "causal_lm")
    assert f"{path}:1: " in str(caught.value)


@pytest.mark.parametrize(
    ("label", "reason"),
    [
        (True, "'label' is a boolean, not a string or a whole number"),
        (1.5, "'label' is a number, not a string or a whole number"),
        (" ", "'label' is empty"),
        (3, "label 3 is a number, but line 1 has 'a'"),
    ],
)
def test_bad_label_is_named(write: Write, label: object, reason: str) -> None:
    path = write([{"text": "t", "label": "a"}, {"text": "t", "label": label}])
    with pytest.raises(UsageError, match=f"data.jsonl:2: {reason}"):
        read(path, "sequence_classification")


def test_every_bad_line_is_reported_and_the_rest_counted(write: Write) -> None:
    path = write([PAIR, b"{", {"text": "t"}, PAIR, {"prompt": "p", "completion": ""}])
    with pytest.raises(UsageError) as caught:
        read(path, "causal_lm")
    assert str(caught.value).splitlines() == [
        f"3 of 5 lines of {path} cannot be used:",
        f"  {path}:2: not JSON: Expecting property name enclosed in double quotes at position 2",
        f"  {path}:3: text line in a file of prompt/completion (line 1)",
        f"  {path}:5: 'completion' is empty",
    ]
    path = write([b"{"] * (SHOWN + 7))
    with pytest.raises(UsageError) as caught:
        read(path, "causal_lm")
    assert str(caught.value).splitlines()[SHOWN + 1 :] == ["  and 7 more"]


@pytest.mark.parametrize("content", [b"", b"\n \n", b"\xef\xbb\xbf\n"])
def test_empty_file_is_a_usage_error(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "data.jsonl"
    path.write_bytes(content)
    with pytest.raises(UsageError, match="data file is empty"):
        read(path, "causal_lm")


def test_unreadable_file_is_a_usage_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="No such file"):
        read(tmp_path / "none.jsonl", "causal_lm")
    with pytest.raises(UsageError, match="Is a directory"):
        read(tmp_path, "causal_lm")


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
    assert "data.jsonl:2: the chat template refuses the messages: no system" in str(caught.value)


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


def examples_of(lengths: Sequence[int], groups: Sequence[int] | None = None) -> list[Example]:
    """Example i is made of the id i + 1."""
    owners = groups or range(len(lengths))
    return [
        Example(np.full(n, i + 1, np.int64), np.full(n, i + 1, np.int64), owner)
        for i, (n, owner) in enumerate(zip(lengths, owners, strict=True))
    ]


@given(
    st.lists(st.integers(0, 9), min_size=2, max_size=60).filter(lambda g: len(set(g)) > 1),
    st.floats(0.01, 0.99),
    st.integers(0, 2**32),
)
def test_split_keeps_prompts_apart_and_both_sides_filled(
    groups: list[int], fraction: float, seed: int
) -> None:
    examples = examples_of([1] * len(groups), groups)
    training, validation = split(examples, fraction, seed)
    assert training
    assert validation
    assert len(training) + len(validation) == len(examples)
    assert not {e.group for e in training} & {e.group for e in validation}
    assert (training, validation) == split(examples, fraction, seed)


def test_split_of_one_prompt_is_a_usage_error() -> None:
    with pytest.raises(UsageError, match="single prompt"):
        split(examples_of([1, 1], [0, 0]), 0.5, seed=0)


@given(
    st.lists(st.integers(1, 50), min_size=1, max_size=120),
    st.integers(1, 9),
    st.integers(0, 3),
)
def test_batches_hold_every_example_once(lengths: list[int], batch_size: int, epoch: int) -> None:
    examples = examples_of(lengths)
    made = list(batches(examples, batch_size, seed=5, epoch=epoch, pad_id=0, multiple=8))
    assert len(made) == batch_count(len(lengths), batch_size)
    rows = [row for batch in made for row in batch.input_ids]
    assert sorted(int(row[0]) for row in rows) == list(range(1, len(lengths) + 1))
    for batch in made:
        assert batch.input_ids.shape[1] % 8 == 0
        assert np.array_equal(batch.attention_mask == 1, batch.input_ids != 0)
        assert np.array_equal(batch.labels == IGNORED, batch.input_ids == 0)
        assert {a.dtype for a in vars(batch).values()} == {np.dtype(np.int64)}


def test_batches_depend_on_seed_and_epoch_alone() -> None:
    examples = examples_of(list(range(1, 41)))

    def order(seed: int, epoch: int) -> list[int]:
        made = batches(examples, 4, seed=seed, epoch=epoch, pad_id=0)
        return [int(row[0]) for batch in made for row in batch.input_ids]

    assert order(0, 0) == order(0, 0)
    assert len({tuple(order(seed, epoch)) for seed in (0, 1) for epoch in (0, 1)}) == 4


def test_bucketing_saves_padding() -> None:
    lengths = np.random.default_rng(0).integers(1, 200, 400).tolist()
    made = list(batches(examples_of(lengths), 8, seed=0, epoch=0, pad_id=0, multiple=8))
    width = sum(batch.input_ids.size for batch in made)
    # Unsorted rows of 8 would pad to about 200 × 8/9, twice the mean; sorted ones to near the mean.
    assert width < 1.1 * sum(lengths)


def test_classes_batch_to_one_index_per_row() -> None:
    examples = [Example(np.ones(3, np.int64), np.array(i, np.int64), i) for i in range(2)]
    (batch,) = batches(examples, 2, seed=0, epoch=0, pad_id=0, multiple=4)
    assert sorted(batch.labels.tolist()) == [0, 1]
    assert batch.input_ids.shape == (2, 4)


@given(st.lists(st.integers(2, 16), min_size=1, max_size=60))
def test_packing_keeps_examples_whole_and_untrained_at_their_start(lengths: list[int]) -> None:
    examples = examples_of(lengths)
    rows = pack(examples, 16, seed=0)
    found = np.concatenate([row.input_ids for row in rows])
    assert sorted(found.tolist()) == sorted(
        np.concatenate([e.input_ids for e in examples]).tolist()
    )
    assert max(len(row.input_ids) for row in rows) <= 16
    for row in rows:
        starts = np.flatnonzero(np.diff(row.input_ids)) + 1
        assert np.array_equal(np.flatnonzero(row.labels == IGNORED), starts)


TENANTS = {
    "definitions": "causal_lm",
    "faq": "causal_lm",
    "tweets": "sequence_classification",
    "topics": "sequence_classification",
    "spam": "sequence_classification",
}


@pytest.mark.parametrize("tenant", TENANTS)
def test_real_data_reads_and_holds_out_what_it_does_not_train(data: Path, tenant: str) -> None:
    train, held_out = (
        {prompt_of(record.content) for record in read(data / name, TENANTS[tenant])}
        for name in (f"{tenant}.train.jsonl", f"{tenant}.held_out.jsonl")
    )
    assert train
    assert held_out
    assert not train & held_out
