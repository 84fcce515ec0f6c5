import json
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from compiler.data import Chat, Completion, Labelled, Text, read
from compiler.data.encode import prompt_of
from compiler.data.record import Message
from planner.errors import UsageError

USER = {"role": "user", "content": "Hi"}
REPLY = {"role": "assistant", "content": "Yo"}
CHAT = {"messages": [USER, REPLY]}
PAIR = {"prompt": "p", "completion": "c"}
Write = Callable[[Sequence[object]], Path]
TENANTS = {
    "definitions": "causal_lm",
    "faq": "causal_lm",
    "tweets": "sequence_classification",
    "topics": "sequence_classification",
    "spam": "sequence_classification",
}


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
        ({}, "the object is empty; formats are messages, conversations,"),
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


def test_every_bad_line_is_reported(write: Write) -> None:
    path = write([PAIR, b"{", {"text": "t"}, PAIR, {"prompt": "p", "completion": ""}])
    with pytest.raises(UsageError) as caught:
        read(path, "causal_lm")
    assert str(caught.value).splitlines() == [
        f"3 of 5 lines of {path} cannot be used:",
        f"  {path}:2: not JSON: Expecting property name enclosed in double quotes at position 2",
        f"  {path}:3: text line in a file of prompt/completion (line 1)",
        f"  {path}:5: 'completion' is empty",
    ]
    path = write([*[b"{"] * 300, b"[]", *[b"{"] * 2])
    with pytest.raises(UsageError) as caught:
        read(path, "causal_lm")
    numbers = [line.split(":")[1] for line in str(caught.value).splitlines()[1:]]
    assert numbers == ["1-300", "301", "302-303"]


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


@pytest.mark.parametrize("tenant", TENANTS)
def test_real_data_reads_and_holds_out_what_it_does_not_train(data: Path, tenant: str) -> None:
    train, held_out = (
        {prompt_of(record.content) for record in read(data / name, TENANTS[tenant])}
        for name in (f"{tenant}.train.jsonl", f"{tenant}.held_out.jsonl")
    )
    assert train
    assert held_out
    assert not train & held_out
