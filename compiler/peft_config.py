"""adapter_config.json of PEFT: what is honoured, what is refused by name, what changes nothing.

A field that is none of these passes when it is empty or false, as a default would be, and is
refused otherwise: a flag of a later PEFT may change what the same tensors mean.
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from planner.errors import IncompatibleError
from planner.method import ALL_LINEAR, Method, Target, buildable

CONFIG = "adapter_config.json"

DEFAULT_RANKS = {"LORA": 8, "VERA": 256}
DEFAULT_ALPHA = 8.0

UNCHANGED = {
    *("base_model_name_or_path", "auto_mapping", "peft_version", "revision", "task_type"),
    *("lora_dropout", "vera_dropout", "inference_mode", "runtime_config"),
    *("init_weights", "init_ia3_weights", "d_initial"),
    *("eva_config", "corda_config", "lora_ga_config", "megatron_core", "qalora_group_size"),
}
"""Fields of training, of bookkeeping, or that another field switches on."""

REFUSED: dict[str, tuple[object, str]] = {
    "bias": ("none", "trained biases would have to replace those of the shared base"),
    "lora_bias": (False, "it adds a bias to B"),
    "target_parameters": (None, "it adapts tensors that are no linears"),
    "trainable_token_indices": (None, "it replaces rows of the embedding"),
    "use_qalora": (False, "it pools the input of A by groups"),
    "alora_invocation_tokens": (None, "it is switched on by a token, not for a whole row"),
    "layer_replication": (None, "it changes the base model's layers"),
    "use_bdlora": (None, "it stores A and B as blocks"),
    "ensure_weight_tying": (False, "it ties the adapters of two layers"),
    "megatron_config": (None, "it shards the layers"),
    "velora_config": (None, "it stores tensors of training in the file"),
    "monteclora_config": (None, "it samples A"),
    "arrow_config": (None, "it routes between adapters"),
    "kasa_config": (None, "it truncates the base weights"),
    "loftq_config": ({}, "its base weights are quantised for this adapter alone"),
}
"""The only value that is accepted of each field, and why others are not."""

PLAIN_STARTS = (True, False, None, "gaussian", "eva", "orthogonal", "mica")
RESIDUAL_STARTS = ("pissa", "olora", "corda", "lora_ga")

Names = list[str] | str | None
Rank = Annotated[int, Field(ge=1, le=2**31 - 1)]
Number = TypeVar("Number", int, float)


class PeftConfig(BaseModel):
    """The honoured fields, with PEFT's defaults.

    `fan_in_fan_out` says how PEFT stores the base weight; A and B are [rank, in] and [out, rank]
    either way, so reading it is all there is to do.
    """

    model_config = ConfigDict(frozen=True, extra="allow", strict=True)

    peft_type: Literal["LORA", "VERA", "IA3"]
    r: Rank | None = None
    lora_alpha: float = Field(default=DEFAULT_ALPHA, allow_inf_nan=False)
    use_rslora: bool = False
    use_dora: bool = False
    init_lora_weights: bool | str | None = True
    fan_in_fan_out: bool = False
    target_modules: Names = None
    exclude_modules: Names = None
    layers_to_transform: list[int] | int | None = None
    layers_pattern: Names = None
    rank_pattern: dict[str, Rank] = {}
    alpha_pattern: dict[str, float] = {}
    modules_to_save: list[str] | None = None
    feedforward_modules: Names = None
    projection_prng_key: int = 0
    save_projection: bool = True

    @property
    def default_rank(self) -> int | None:
        """The rank where no pattern fits; None for a method without one."""
        return self.r or DEFAULT_RANKS.get(self.peft_type)

    def rank(self, module: str) -> int | None:
        rank = self.default_rank
        return None if rank is None else _by_pattern(self.rank_pattern, module, rank)

    def scaling(self, module: str) -> float:
        """The factor on B A; 1 where PEFT has none."""
        rank = self.rank(module)
        if self.peft_type != "LORA" or rank is None:
            return 1.0
        alpha = _by_pattern(self.alpha_pattern, module, self.lora_alpha)
        return alpha / (rank**0.5 if self.use_rslora else rank)

    def targets(self, site: Target) -> bool:
        """Whether PEFT would adapt this linear."""
        if self.saves(site.name):
            return False
        if self.exclude_modules and _named(self.exclude_modules, site.name):
            return False
        if self.target_modules == "all-linear":
            return site.role in ALL_LINEAR
        found = self.target_modules is None or _named(self.target_modules, site.name)
        return found and self._in_layers(site.name)

    def saves(self, module: str) -> bool:
        """Whether the module, or one around it, is trained and saved whole."""
        saved = self.modules_to_save or ()
        return any(_matches(rf"(^|.*\.){name}($|\..*)", module) for name in saved)

    def feedforward(self, module: str) -> bool:
        """Whether IA3 scales this linear's input; PEFT matches the end of its name, dot or not."""
        names = self.feedforward_modules
        if isinstance(names, str):
            return _matches(rf"(?:{names})\Z", module)
        return any(module.endswith(name) for name in names or ())

    def method(self) -> Method:
        """The first method that asks for most of the flags that are set."""
        flags = {name: getattr(self, name) for name in type(self).model_fields}
        fitting = [
            record
            for record in buildable().values()
            if record.peft_config and record.peft_config.items() <= flags.items()
        ]
        return max(fitting, key=lambda record: len(record.peft_config or ()))

    def _in_layers(self, module: str) -> bool:
        wanted = self.layers_to_transform
        if wanted is None or wanted == []:
            return True
        names = self.layers_pattern or []
        stems = [rf"(?:^|.*?\.){name}" for name in ([names] if isinstance(names, str) else names)]
        for stem in stems or [r".*?\.[^.]*"]:
            if found := _search(rf"{stem}\.(?P<layer>\d+)\.", module):
                layer = int(found["layer"])
                return layer in ([wanted] if isinstance(wanted, int) else wanted)
        return False


def read_config(folder: Path) -> PeftConfig:
    """Raises IncompatibleError for a field that cannot be honoured."""
    path = folder / CONFIG
    if not path.is_file():
        raise IncompatibleError(f"'{folder}' is no PEFT adapter: it has no {CONFIG}")
    try:
        fields = json.loads(path.read_text("utf-8"))
    except (ValueError, RecursionError) as error:
        raise IncompatibleError(f"'{path}' is not JSON: {error}") from error
    if not isinstance(fields, dict):
        raise IncompatibleError(f"'{path}' holds no object")
    try:
        config = PeftConfig.model_validate_json(json.dumps(fields))
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise IncompatibleError(f"'{path}' is not valid at {place}: {first['msg']}") from error
    _refuse(fields)
    _refuse_start(config)
    return config


def _refuse(fields: Mapping[str, object]) -> None:
    for name, value in fields.items():
        if name in PeftConfig.model_fields or name in UNCHANGED:
            continue
        accepted, reason = REFUSED.get(name, (False, "this release does not know the field"))
        if value != accepted and value not in (None, "", [], {}):
            raise IncompatibleError(f"{CONFIG} sets {name} to {json.dumps(value)}: {reason}")


def _refuse_start(config: PeftConfig) -> None:
    start = config.init_lora_weights
    if start in PLAIN_STARTS:
        return
    if isinstance(start, str) and start.startswith(RESIDUAL_STARTS):
        raise IncompatibleError(
            f'the adapter was started with init_lora_weights "{start}", which changes the base '
            "weights, and the file does not hold what was taken from them",
            hint="save it in PEFT with path_initial_model_for_weight_conversion, as plain LoRA",
        )
    raise IncompatibleError(
        f"{CONFIG} sets init_lora_weights to {json.dumps(start)}: the base weights may differ"
    )


def _named(names: list[str] | str, module: str) -> bool:
    """PEFT's rule: a string is a pattern for the whole name, a list holds ends of names."""
    if isinstance(names, str):
        return _matches(rf"(?:{names})\Z", module)
    return any(module == name or module.endswith(f".{name}") for name in names)


def _by_pattern(patterns: Mapping[str, Number], module: str, default: Number) -> Number:
    """PEFT's rule: the first pattern that fits the end of the name from a dot on."""
    for pattern, value in patterns.items():
        if _matches(rf"(.*\.)?({pattern})$", module):
            return value
    return default


def _matches(pattern: str, text: str) -> bool:
    return _search(pattern, text) is not None


def _search(pattern: str, text: str) -> re.Match[str] | None:
    try:
        return re.match(pattern, text)
    except (re.error, OverflowError, RecursionError) as error:
        raise IncompatibleError(f"{CONFIG} holds the pattern '{pattern}': {error}") from error
