"""Text ↔ ids and messages → text, from the files beside a model; no transformers, no torch.

The ids equal those of `AutoTokenizer` and `apply_chat_template`, because both read tokenizer.json
with the same library and render the same template in the same kind of sandbox.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

import jinja2
import tokenizers
from jinja2.ext import Extension, loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

from planner.errors import UsageError

FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
)
"""What `load` reads besides config.json and generation_config.json; only the first must exist."""

SPECIAL_TOKENS = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token")

Template = Literal["chat", "text"]
Message = Mapping[str, str]


@dataclass(frozen=True)
class Tokenizer:
    """`eos_ids` end a generation, `eos_id` is the one appended in training; `pad_id` is masked."""

    backend: tokenizers.Tokenizer
    template: jinja2.Template | None
    special_tokens: Mapping[str, str]
    eos_ids: tuple[int, ...]
    pad_id: int

    @property
    def eos_id(self) -> int | None:
        return self.eos_ids[0] if self.eos_ids else None

    def encode(
        self, text: str, *, special_tokens: bool = True, max_length: int | None = None
    ) -> list[int]:
        """Ids of `text`; `max_length` cuts the text and keeps the special tokens around it."""
        check_unicode(text)
        encoding = self.backend.encode(text, add_special_tokens=special_tokens)
        if max_length is None or len(encoding.ids) <= max_length:
            return list(encoding.ids)
        body = self.backend.encode(text, add_special_tokens=False)
        added = self.backend.num_special_tokens_to_add(is_pair=False) if special_tokens else 0
        body.truncate(max(max_length - added, 0))
        if not special_tokens:
            return list(body.ids)
        return list(self.backend.post_process(body, add_special_tokens=True).ids)

    def decode(self, ids: Sequence[int]) -> str:
        """Text of `ids` without special tokens."""
        return self.backend.decode(list(ids), skip_special_tokens=True)

    def render(self, messages: Sequence[Message], *, add_generation_prompt: bool = False) -> str:
        """The chat template applied; raises jinja2.TemplateError where the template refuses."""
        if self.template is None:
            raise UsageError(
                "the model has no chat template, so it cannot take chat messages",
                hint="use prompt/completion data and plain prompts, or add chat_template.jinja",
            )
        try:
            return self.template.render(
                messages=[dict(message) for message in messages],
                tools=None,
                documents=None,
                add_generation_prompt=add_generation_prompt,
                **self.special_tokens,
            )
        except (TypeError, ValueError) as error:  # of the template's own expressions
            raise jinja2.TemplateRuntimeError(str(error)) from error

    def chat(self, messages: Sequence[Message], *, add_generation_prompt: bool = True) -> str:
        """The messages as the model's chat template writes them."""
        try:
            return self.render(messages, add_generation_prompt=add_generation_prompt)
        except jinja2.TemplateError as error:
            raise UsageError(f"the chat template refuses the messages: {error}") from error

    def prompt(self, text: str, template: Template, *, system: str | None = None) -> list[int]:
        """Ids that generation starts from, the same that training put before a completion."""
        if template == "chat":
            rendered = self.chat(user_turn(text, system))
            return self.encode(rendered, special_tokens=False)
        ids = self.encode(text)
        return ids[:-1] if ids and ids[-1] in self.eos_ids else ids


def user_turn(text: str, system: str | None = None) -> list[dict[str, str]]:
    """A conversation of one user message, after a system message where there is one."""
    opening = [] if system is None else [{"role": "system", "content": system}]
    return [*opening, {"role": "user", "content": text}]


def check_unicode(text: str) -> None:
    """Half a surrogate pair is a Python string, yet no text that has a UTF-8 form."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise UsageError(
            f"text has no UTF-8 form: lone surrogate U+{ord(text[error.start]):04X}"
            f" at character {error.start}"
        ) from error


def load(folder: Path) -> Tokenizer:
    """The tokenizer of a model or artifact folder; raises UsageError for a missing or bad file."""
    backend = _backend(folder / "tokenizer.json")
    settings = _json(folder / "tokenizer_config.json")
    special = _special_tokens(settings | _json(folder / "special_tokens_map.json"))
    model = _json(folder / "config.json")
    eos = [
        _token_id(backend, special.get("eos_token")),
        *_ids(_json(folder / "generation_config.json").get("eos_token_id")),
        *_ids(model.get("eos_token_id")),
    ]
    eos_ids = tuple(dict.fromkeys(i for i in eos if i is not None))
    pad = [
        _token_id(backend, special.get("pad_token")),
        *_ids(model.get("pad_token_id")),
        *eos_ids,
        0,
    ]
    return Tokenizer(
        backend=backend,
        template=_template(folder, settings),
        special_tokens=special,
        eos_ids=eos_ids,
        pad_id=next(i for i in pad if i is not None),
    )


def _backend(path: Path) -> tokenizers.Tokenizer:
    if not path.is_file():
        raise UsageError(
            f"no tokenizer.json in {path.parent}",
            hint="`AutoTokenizer.from_pretrained(MODEL).save_pretrained(DIR)` writes one",
        )
    try:
        backend = tokenizers.Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises nothing narrower
        raise UsageError(f"{path} is not a tokenizer: {error}") from error
    # Files saved for sentence embedding carry a fixed length and padding; callers choose here.
    backend.no_truncation()
    backend.no_padding()
    return backend


def _json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_bytes())
    except ValueError as error:
        raise UsageError(f"{path} is not JSON: {error}") from error
    if not isinstance(content, dict):
        raise UsageError(f"{path} is not a JSON object")
    return content


def _special_tokens(settings: Mapping[str, Any]) -> dict[str, str]:
    """Tokens by name; a file holds each as text or as an object with a `content`."""
    found = {name: settings[name] for name in SPECIAL_TOKENS if settings.get(name) is not None}
    return {name: v["content"] if isinstance(v, dict) else str(v) for name, v in found.items()}


def _token_id(backend: tokenizers.Tokenizer, token: str | None) -> int | None:
    return None if token is None else backend.token_to_id(token)


def _ids(value: int | list[int] | None) -> list[int]:
    """A config's token id field, which holds nothing, one id or several."""
    if value is None:
        return []
    return [value] if isinstance(value, int) else list(value)


class _Generation(Extension):
    """`{% generation %}` marks replies for training masks and renders as its body."""

    tags = {"generation"}  # noqa: RUF012 (jinja2 declares it as an instance attribute)

    def parse(self, parser: "jinja2.parser.Parser") -> list[jinja2.nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _template(folder: Path, settings: Mapping[str, Any]) -> jinja2.Template | None:
    path = folder / "chat_template.jinja"
    source = path.read_text("utf-8") if path.is_file() else settings.get("chat_template")
    if isinstance(source, list):  # several named templates; the chat one is named "default"
        source = {entry["name"]: entry["template"] for entry in source}.get("default")
    if source is None:
        return None
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _strftime_now
    try:
        return environment.from_string(source)
    except (jinja2.TemplateError, SyntaxError) as error:
        raise UsageError(f"the chat template in {folder} does not compile: {error}") from error


def _to_json(value: object, *, ensure_ascii: bool = False, **options: Any) -> str:  # noqa: ANN401
    """Unlike jinja2's own filter, leaves <, > and & as they are."""
    return json.dumps(value, ensure_ascii=ensure_ascii, **options)


def _raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)


def _strftime_now(layout: str) -> str:
    return datetime.now().astimezone().strftime(layout)
