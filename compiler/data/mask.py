"""What the model reads of one record and what of it the loss counts.

Only what the model must say itself is trained: assistant turns, completions, and all of a running
text. The token that ends a turn is trained, the template's own text after it is not.
"""

from compiler.data.example import IGNORED
from compiler.data.problems import BadLine
from compiler.data.record import Chat, Completion, Content, Message, Text
from compiler.tokenizer import Template, Tokenizer
from planner.errors import UsageError

Masked = tuple[list[int], list[int]]
"""Ids and, aligned with them, labels."""


def template_for(content: Content, tokenizer: Tokenizer) -> Template:
    """Instructions become a chat where the model knows how to chat; running text never does."""
    if isinstance(content, Text):
        return "text"
    if isinstance(content, Chat):
        return "chat"
    return "text" if tokenizer.template is None else "chat"


def mask(content: Content, tokenizer: Tokenizer, template: Template) -> Masked:
    if isinstance(content, Chat):
        return mask_chat(content.messages, tokenizer)
    if isinstance(content, Completion):
        if template == "chat":
            return mask_chat(as_messages(content), tokenizer)
        return mask_completion(content, tokenizer)
    ids = [*tokenizer.prompt(content.text, "text"), end_of_sequence(tokenizer)]
    return ids, list(ids)


def as_messages(content: Completion) -> tuple[Message, ...]:
    turns = (Message("user", content.prompt), Message("assistant", content.completion))
    return turns if content.system is None else (Message("system", content.system), *turns)


def mask_completion(content: Completion, tokenizer: Tokenizer) -> Masked:
    """Prompt and completion become ids apart, as when a model continues a prompt."""
    opening = "" if content.system is None else f"{content.system}\n\n"
    prompt = tokenizer.prompt(opening + content.prompt, "text")
    answer = tokenizer.encode(content.separator + content.completion, special_tokens=False)
    answer.append(end_of_sequence(tokenizer))
    return prompt + answer, [IGNORED] * len(prompt) + answer


def mask_chat(messages: tuple[Message, ...], tokenizer: Tokenizer) -> Masked:
    """The whole conversation in one go, up to the end of its last reply.

    A reply is what the template adds between its generation prompt and the next message. That is
    exact only where the ids of every shorter conversation begin those of the whole one.
    """
    turns = [{"role": m.role, "content": m.content} for m in messages]
    whole = _ids(tokenizer, tokenizer.render(turns))
    spans = []
    for number, message in enumerate(messages):
        if message.role != "assistant":
            continue
        before = tokenizer.render(turns[:number], add_generation_prompt=True)
        through = tokenizer.render(turns[: number + 1])
        start = _prefix(whole, _ids(tokenizer, before), number, "begin")
        stop = _prefix(whole, _ids(tokenizer, through), number, "end")
        spans.append((start, _after_last_end(whole, start, stop, tokenizer.eos_ids)))
    ids = whole[: spans[-1][1]]
    if ids[-1] not in tokenizer.eos_ids:
        ids.append(end_of_sequence(tokenizer))
        spans[-1] = (spans[-1][0], len(ids))
    labels = [IGNORED] * len(ids)
    for start, stop in spans:
        labels[start:stop] = ids[start:stop]
    return ids, labels


def end_of_sequence(tokenizer: Tokenizer) -> int:
    if tokenizer.eos_id is None:
        raise UsageError(
            "the tokenizer has no end-of-sequence token, so a reply could never end",
            hint="set eos_token in tokenizer_config.json",
        )
    return tokenizer.eos_id


def _ids(tokenizer: Tokenizer, rendered: str) -> list[int]:
    return tokenizer.encode(rendered, special_tokens=False)


def _prefix(whole: list[int], part: list[int], number: int, edge: str) -> int:
    """Length of `part`, which must begin `whole`."""
    if whole[: len(part)] != part:
        raise BadLine(
            f"message {number + 1}: in the chat template the reply does not {edge} at a token"
            " boundary; strip the white space around it"
        )
    return len(part)


def _after_last_end(ids: list[int], start: int, stop: int, eos_ids: tuple[int, ...]) -> int:
    """Where a reply stops: after its last end token, or where the template's turn does."""
    ends = [i for i in range(start, stop) if ids[i] in eos_ids]
    return ends[-1] + 1 if ends else stop
