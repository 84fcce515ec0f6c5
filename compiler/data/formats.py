"""The data formats: one row of `FORMATS` each, with the keys that tell it and how it is read.

A format is told by its keys. Keys that no format knows are ignored, as files carry ids and sources;
those of `REFUSED` would change the meaning of a line, so they are refused by name.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from compiler.data.problems import BadLine
from compiler.data.record import Chat, Completion, Content, Labelled, Message, Text
from planner.errors import did_you_mean

Line = Mapping[str, object]

REFUSED = ("chosen", "function_call", "history", "images", "rejected", "tool_calls", "tools")
SHAREGPT_ROLES = {"human": "user", "gpt": "assistant", "chatgpt": "assistant", "bot": "assistant"}
KINDS = {
    bool: "a boolean",
    int: "a number",
    float: "a number",
    str: "a string",
    list: "a list",
    dict: "an object",
}
ROLES = ("system", "user", "assistant")


@dataclass(frozen=True)
class Format:
    """`keys` must all be present; `task` is the plan's task that trains on it."""

    name: str
    keys: tuple[str, ...]
    task: str
    parse: Callable[[Line], Content]


def text(line: Line, key: str) -> str:
    """A value that must be text with something in it."""
    value = string(line, key)
    if not value.strip():
        raise BadLine(f"'{key}' is empty")
    return value


def string(line: Line, key: str) -> str:
    if key not in line:
        raise BadLine(f"no '{key}'")
    value = line[key]
    if not isinstance(value, str):
        raise BadLine(f"'{key}' is {kind(value)}, not a string")
    if any("\ud800" <= character <= "\udfff" for character in value):
        raise BadLine(f"'{key}' holds half a surrogate pair, which has no UTF-8 form")
    return value


def kind(value: object) -> str:
    """JSON's word for a value's type."""
    if value is None:
        return "null"
    return KINDS[type(value)]


def optional(line: Line, key: str) -> str | None:
    """A value that may be absent, null or blank, which all mean none."""
    if line.get(key) is None:
        return None
    value = string(line, key)
    return value if value.strip() else None


def conversation(line: Line, key: str, role_key: str, content_key: str) -> tuple[Message, ...]:
    turns = line[key]
    if not isinstance(turns, list) or not turns:
        raise BadLine(f"'{key}' is not a list of messages")
    messages = []
    for number, turn in enumerate(turns, start=1):
        if not isinstance(turn, dict):
            raise BadLine(f"message {number} is {kind(turn)}, not an object")
        try:
            messages.append(message(turn, role_key, content_key))
        except BadLine as error:
            raise BadLine(f"message {number}: {error}") from error
    if all(m.role != "assistant" for m in messages):
        raise BadLine("no assistant message, so nothing to train on")
    return tuple(messages)


def message(turn: Line, role_key: str, content_key: str) -> Message:
    refused(turn)
    role = string(turn, role_key)
    known = SHAREGPT_ROLES if role_key == "from" else {}
    if known.get(role, role) not in ROLES:
        raise BadLine(f"unknown role '{role}'; roles are {', '.join([*known, *ROLES])}")
    return Message(role=known.get(role, role), content=text(turn, content_key))


def chat(line: Line) -> Content:
    return Chat(after_system(line, conversation(line, "messages", "role", "content")))


def sharegpt(line: Line) -> Content:
    return Chat(after_system(line, conversation(line, "conversations", "from", "value")))


def after_system(line: Line, messages: tuple[Message, ...]) -> tuple[Message, ...]:
    """Messages after the line's own system prompt, where it has one."""
    system = optional(line, "system")
    return messages if system is None else (Message("system", system), *messages)


def instruction(line: Line) -> Content:
    given = optional(line, "input")
    prompt = text(line, "instruction")
    return Completion(
        prompt=prompt if given is None else f"{prompt}\n\n{given}",
        completion=text(line, "output"),
        system=optional(line, "system"),
        separator="\n\n",
    )


def completion(line: Line) -> Content:
    return Completion(
        prompt=text(line, "prompt"),
        completion=text(line, "completion"),
        system=optional(line, "system"),
    )


def labelled(line: Line) -> Content:
    label = line["label"]
    if isinstance(label, bool) or not isinstance(label, int | str):
        raise BadLine(f"'label' is {kind(label)}, not a string or a whole number")
    return Labelled(text(line, "text"), label if isinstance(label, int) else text(line, "label"))


def plain(line: Line) -> Content:
    return Text(text(line, "text"))


FORMATS = (
    Format("chat messages", ("messages",), "causal_lm", chat),
    Format("ShareGPT conversations", ("conversations",), "causal_lm", sharegpt),
    Format("instruction/output", ("instruction", "output"), "causal_lm", instruction),
    Format("prompt/completion", ("prompt", "completion"), "causal_lm", completion),
    Format("text/label", ("text", "label"), "sequence_classification", labelled),
    Format("text", ("text",), "causal_lm", plain),
)


def refused(line: Line) -> None:
    found = [key for key in REFUSED if line.get(key)]
    if found:
        raise BadLine(f"'{found[0]}' is not supported")


def format_of(line: Line) -> Format:
    """The first format whose keys the line has; raises BadLine naming what is missing or near."""
    refused(line)
    for candidate in FORMATS:
        if all(key in line for key in candidate.keys):
            return candidate
    known = [key for candidate in FORMATS for key in candidate.keys]
    for candidate in FORMATS:
        missing = [key for key in candidate.keys if key not in line]
        if len(missing) < len(candidate.keys):
            raise BadLine(f"{candidate.name} line has no '{missing[0]}'")
    for key in line:
        hint = did_you_mean(key, known)
        if hint:
            raise BadLine(f"unknown key '{key}'; {hint}")
    formats = ", ".join("/".join(candidate.keys) for candidate in FORMATS)
    found = f"no format has the keys {', '.join(sorted(line))}" if line else "the object is empty"
    raise BadLine(f"{found}; formats are {formats}")
