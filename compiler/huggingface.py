"""Hugging Face checkpoint folder -> torch module, and the forms in which it is trained.

Read from the folder alone: no network, no code of the checkpoint's own, no pickle. Weights are
float32 and attention is `sdpa`. Parameters keep their Hugging Face names in every form, which is
how training and inference captures meet; export/inference_forms.py has the inference side.
"""

import hashlib
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError
from torch import nn
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    PreTrainedModel,
)
from transformers.pytorch_utils import Conv1D
from transformers.utils import logging as transformers_logging

from planner.errors import IncompatibleError, UsageError

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
DIGEST_CHUNK_BYTES = 1 << 20
COSMETIC_FIELDS = frozenset(
    {
        "_model_name_or_path",
        "_name_or_path",
        "bos_token_id",
        "dtype",
        "eos_token_id",
        "finetuning_task",
        "id2label",
        "initializer_range",
        "label2id",
        "pad_token_id",
        "torch_dtype",
        "transformers_version",
        "unk_token_id",
    }
)
"""Fields of config.json that leave the captured graph as it is."""


class Adopted(nn.Module):
    """A form of a model: it has the model's children under their own names.

    The model itself is an attribute without a name, or every parameter would be prefixed.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.adopt(model)

    def adopt(self, model: PreTrainedModel) -> None:
        own = [name for name, _ in model.named_parameters(recurse=False)]
        if own:
            raise IncompatibleError(
                f"{type(model).__name__} has parameters outside its parts: {own}"
            )
        for name, child in model.named_children():
            self.add_module(name, child)
        self.__dict__["adopted"] = model

    @property
    def source(self) -> PreTrainedModel:
        return cast(PreTrainedModel, self.__dict__["adopted"])


class CausalLM(Adopted):
    """The training form of a causal language model: no cache, every position's logits."""

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        output = self.source(input_ids=input_ids, use_cache=False)
        return cast(torch.Tensor, output.logits)


class SequenceClassifier(Adopted):
    """A checkpoint's own classification model, returning the logits."""

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        output = self.source(input_ids=input_ids, attention_mask=attention_mask)
        return cast(torch.Tensor, output.logits)


class MeanPoolClassifier(Adopted):
    """classifier(mean of the encoder's last hidden states over the unmasked positions)."""

    def __init__(self, encoder: PreTrainedModel, hidden_size: int, labels: int) -> None:
        super().__init__(encoder)
        self.classifier = nn.Linear(hidden_size, labels)

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        output = self.source(input_ids=input_ids, attention_mask=attention_mask)
        weight = attention_mask[:, :, None].to(output.last_hidden_state.dtype)
        total = (output.last_hidden_state * weight).sum(dim=1)
        return cast(torch.Tensor, self.classifier(total / weight.sum(dim=1).clamp(min=1.0)))


def load_causal_lm(folder: Path) -> PreTrainedModel:
    """The model in eval mode, frozen, float32; raises UsageError or IncompatibleError."""
    return _load(AutoModelForCausalLM, folder, read_config(folder), lambda model: ())


def load_encoder(folder: Path, labels: int) -> MeanPoolClassifier | SequenceClassifier:
    """The checkpoint with a classifier of `labels` rows whose weight and bias are zero.

    A checkpoint that is a classification model keeps its own head up to the last linear; every
    other one is mean-pooled. Tenants bring the classifier, so the base one carries no labels.
    """
    config = read_config(folder)
    module: MeanPoolClassifier | SequenceClassifier
    if any("ForSequenceClassification" in name for name in config.get("architectures") or ()):
        factory = AutoModelForSequenceClassification
        module = SequenceClassifier(
            _load(factory, folder, config, lambda m: (classifier_name(m),), num_labels=labels)
        )
    else:
        model = _load(AutoModel, folder, config, lambda model: ("pooler",))
        module = MeanPoolClassifier(model, model.config.get_text_config().hidden_size, labels)
    for parameter in module.get_submodule(classifier_name(module)).parameters():
        nn.init.zeros_(parameter)
    return module.eval().requires_grad_(requires_grad=False)


def classifier_name(module: nn.Module) -> str:
    """The last linear of a classifier: the one whose rows are the labels."""
    linears = [name for name, child in module.named_modules() if isinstance(child, nn.Linear)]
    if not linears:
        raise IncompatibleError(f"{type(module).__name__} has no linear that could be a classifier")
    return str(linears[-1])


def capture_key(folder: Path) -> dict[str, object]:
    """The fields of config.json that decide what is captured."""
    config = read_config(folder)
    return {name: value for name, value in config.items() if name not in COSMETIC_FIELDS}


def read_config(folder: Path) -> dict[str, Any]:
    """config.json, refused when it asks for code of its own or for weights of another kind."""
    path = folder / CONFIG
    if not path.is_file():
        raise UsageError(f"no {CONFIG} in the model folder '{folder}'")
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"'{path}' is not JSON: {error}") from error
    if not isinstance(config, dict):
        raise UsageError(f"'{path}' holds a {type(config).__name__}, not an object")
    if config.get("auto_map"):
        raise IncompatibleError(
            f"'{path}' asks for the checkpoint's own code (auto_map), which is never run",
            hint="use a checkpoint of an architecture that transformers itself provides",
        )
    if config.get("quantization_config"):
        kind = config["quantization_config"].get("quant_method", "unknown")
        raise IncompatibleError(
            f"'{path}' describes weights already quantised by '{kind}'",
            hint="use the unquantised checkpoint: the plan's format quantises it",
        )
    return config


def weight_files(folder: Path) -> tuple[Path, ...]:
    """The safetensors files of a checkpoint; raises UsageError when there are none or some miss."""
    index = folder / INDEX
    if not index.is_file():
        if (folder / WEIGHTS).is_file():
            return (folder / WEIGHTS,)
        pickles = sorted(path.name for path in folder.glob("*.bin"))
        found = f"only {', '.join(pickles)}, and pickle is never loaded" if pickles else "none"
        raise UsageError(
            f"no {WEIGHTS} or {INDEX} in '{folder}' ({found})",
            hint="convert the checkpoint to safetensors where you trust its origin",
        )
    try:
        shards = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, AttributeError) as error:
        raise UsageError(f"'{index}' is no safetensors index: {error!r}") from error
    outside = [name for name in shards if Path(name).name != name]
    if outside:
        raise UsageError(f"'{index}' names a file outside its folder: {outside[0]}")
    missing = [name for name in shards if not (folder / name).is_file()]
    if missing:
        raise UsageError(f"'{folder}' lacks {len(missing)} of {len(shards)} shards: {missing[0]}")
    return tuple(folder / name for name in shards)


def base_digest(folder: Path) -> str:
    """sha256 over the name, size and bytes of config.json and of each weight file."""
    digest = hashlib.sha256()
    for path in (folder / CONFIG, *weight_files(folder)):
        digest.update(f"{path.name}\0{path.stat().st_size}\0".encode())
        with path.open("rb") as file:
            while chunk := file.read(DIGEST_CHUNK_BYTES):
                digest.update(chunk)
    return digest.hexdigest()


def _load(
    factory: type[Any],
    folder: Path,
    config: dict[str, Any],
    unused: Callable[[PreTrainedModel], tuple[str, ...]],
    **options: object,
) -> PreTrainedModel:
    """The model; `unused` names its parts whose weights the files need not hold."""
    weight_files(folder)
    with _quiet():
        try:
            model, info = factory.from_pretrained(
                folder,
                local_files_only=True,
                use_safetensors=True,
                trust_remote_code=False,
                dtype=torch.float32,
                attn_implementation="sdpa",
                output_loading_info=True,
                ignore_mismatched_sizes=True,
                **options,
            )
        except SafetensorError as error:
            raise IncompatibleError(f"the weights in '{folder}' cannot be read: {error}") from error
        except (ValueError, KeyError, OSError) as error:
            name = config.get("model_type", "unknown")
            raise IncompatibleError(
                f"transformers cannot load the '{name}' model in '{folder}': {error}"
            ) from error
    _check_complete(folder, info, tuple(f"{part}." for part in unused(model)))
    _use_linears(model)
    return cast(PreTrainedModel, model.eval().requires_grad_(requires_grad=False))


def _use_linears(model: PreTrainedModel) -> None:
    """GPT-2's Conv1D is a linear whose weight lies [in, out]; here all lie [out, in]."""
    for name, module in list(model.named_modules()):
        if isinstance(module, Conv1D):
            with torch.device("meta"):
                linear = nn.Linear(module.nx, module.nf)
            linear.weight = nn.Parameter(module.weight.detach().T.contiguous())
            linear.bias = module.bias
            model.set_submodule(name, linear)


def _check_complete(folder: Path, info: dict[str, Any], unused: tuple[str, ...]) -> None:
    """What the files lack would be random numbers, and nothing would say so."""
    missing = sorted(name for name in info["missing_keys"] if not name.startswith(unused))
    if missing:
        raise IncompatibleError(
            f"the weights in '{folder}' lack {len(missing)} tensors of the model: {missing[0]}"
        )
    for name, found, expected in sorted(info["mismatched_keys"]):
        if not name.startswith(unused):
            raise IncompatibleError(
                f"'{name}' in '{folder}' is of another shape than the config says: "
                f"{list(found)}, not {list(expected)}"
            )


@contextmanager
def _quiet() -> Iterator[None]:
    """transformers reports on standard error; commands report in their own words."""
    level = transformers_logging.get_verbosity()
    progress = transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        transformers_logging.set_verbosity(level)
        if progress:
            transformers_logging.enable_progress_bar()  # type: ignore[no-untyped-call]
