"""What one line of a data file holds, whatever format it was written in."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Message:
    role: str
    content: str


@dataclass(frozen=True)
class Chat:
    """A conversation; every assistant message is trained on, the rest is context."""

    messages: tuple[Message, ...]


@dataclass(frozen=True)
class Completion:
    """One answer to one prompt. `separator` stands between them where no chat template does."""

    prompt: str
    completion: str
    system: str | None = None
    separator: str = ""


@dataclass(frozen=True)
class Text:
    """Running text, all of it trained on."""

    text: str


@dataclass(frozen=True)
class Labelled:
    """A text and its class."""

    text: str
    label: str | int


Content = Chat | Completion | Text | Labelled


@dataclass(frozen=True)
class Record:
    path: Path
    line: int
    content: Content
