"""Records → examples of bounded length, with their groups and classes."""

from collections.abc import Sequence
from dataclasses import dataclass

import jinja2
import numpy as np

from compiler.data.example import IGNORED, Example
from compiler.data.mask import Masked, mask, template_for
from compiler.data.problems import BadLine, Problem, refuse
from compiler.data.record import Chat, Completion, Content, Labelled, Record, Text
from compiler.tokenizer import Template, Tokenizer
from planner.errors import UsageError


@dataclass(frozen=True)
class Encoded:
    """`truncated` examples lost their end to the sequence length, `dropped` lines their reply.

    `template` says how prompts were put to the model; None where there are classes.
    """

    examples: tuple[Example, ...]
    template: Template | None
    labels: tuple[str, ...] | None
    truncated: int
    dropped: int

    def notes(self) -> list[str]:
        """What the user should know before training."""
        notes = []
        if self.truncated:
            notes.append(f"{self.truncated} examples are cut to the sequence length")
        if self.dropped:
            notes.append(f"{self.dropped} lines are left out: their prompts fill the whole length")
        return notes


def encode(
    records: Sequence[Record],
    tokenizer: Tokenizer,
    sequence_length: int,
    *,
    labels: tuple[str, ...] | None = None,
) -> Encoded:
    """Examples of at most `sequence_length` tokens; `labels` fixes the classes of held-out data."""
    if isinstance(records[0].content, Labelled):
        names = labels or class_names(records)
        return _encode_labelled(records, tokenizer, sequence_length, names)
    template = template_for(records[0].content, tokenizer)
    groups = _groups(records)
    examples: list[Example] = []
    truncated = dropped = 0
    for record, (ids, targets) in _masked(records, tokenizer, template):
        pieces = _pieces(record.content, ids, targets, sequence_length)
        # The first token has nothing before it to be predicted from.
        kept = [piece for piece in pieces if any(label != IGNORED for label in piece[1][1:])]
        truncated += bool(kept) and sum(len(piece[0]) for piece in pieces) < len(ids)
        dropped += not kept
        group = groups[prompt_of(record.content)]
        examples += [Example(np.array(i, np.int64), np.array(t, np.int64), group) for i, t in kept]
    if not examples:
        raise UsageError(
            f"no line of {records[0].path} has a reply within {sequence_length} tokens",
            hint="raise the sequence length or shorten the prompts",
        )
    return Encoded(tuple(examples), template, None, truncated, dropped)


def class_names(records: Sequence[Record]) -> tuple[str, ...]:
    """Class names in index order: numbers by value, names by code point."""
    found = {r.content.label for r in records if isinstance(r.content, Labelled)}
    numbers = sorted(label for label in found if isinstance(label, int))
    names = (*map(str, numbers), *sorted(label for label in found if isinstance(label, str)))
    if len(names) < 2:
        raise UsageError(f"every line of {records[0].path} has the same label: {names[0]}")
    return names


def prompt_of(content: Content) -> str:
    """What must not stand on both sides of a split."""
    if isinstance(content, Chat):
        replies = [n for n, m in enumerate(content.messages) if m.role == "assistant"]
        return "\n".join(m.content for m in content.messages[: replies[0]])
    return content.prompt if isinstance(content, Completion) else content.text


def _groups(records: Sequence[Record]) -> dict[str, int]:
    """A number for each distinct prompt."""
    distinct = dict.fromkeys(prompt_of(record.content) for record in records)
    return {prompt: number for number, prompt in enumerate(distinct)}


def _masked(
    records: Sequence[Record], tokenizer: Tokenizer, template: Template
) -> list[tuple[Record, Masked]]:
    """Every record masked; the lines that the chat template refuses are reported together."""
    masked: list[tuple[Record, Masked]] = []
    problems: list[Problem] = []
    for record in records:
        try:
            masked.append((record, mask(record.content, tokenizer, template)))
        except BadLine as error:
            problems.append(Problem(record.path, record.line, str(error)))
        except jinja2.TemplateError as error:
            reason = f"the chat template refuses the messages: {error}"
            problems.append(Problem(record.path, record.line, reason))
    if problems:
        refuse(problems, len(records))
    return masked


def _pieces(content: Content, ids: list[int], labels: list[int], length: int) -> list[Masked]:
    """A reply loses its end to the limit; running text goes on in the next piece."""
    stop = len(ids) if isinstance(content, Text) else 1
    return [(ids[i : i + length], labels[i : i + length]) for i in range(0, stop, length)]


def _encode_labelled(
    records: Sequence[Record], tokenizer: Tokenizer, length: int, names: tuple[str, ...]
) -> Encoded:
    index = {name: number for number, name in enumerate(names)}
    groups = _groups(records)
    examples: list[Example] = []
    problems: list[Problem] = []
    truncated = 0
    for record in records:
        assert isinstance(record.content, Labelled)
        label = str(record.content.label)
        if label not in index:
            reason = f"unknown label '{label}'; labels are {', '.join(names)}"
            problems.append(Problem(record.path, record.line, reason))
            continue
        ids = tokenizer.encode(record.content.text)
        if len(ids) > length:
            truncated += 1
            ids = tokenizer.encode(record.content.text, max_length=length)
        group = groups[prompt_of(record.content)]
        examples.append(Example(np.array(ids, np.int64), np.array(index[label], np.int64), group))
    if problems:
        refuse(problems, len(records))
    return Encoded(tuple(examples), None, names, truncated, dropped=0)
