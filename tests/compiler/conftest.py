"""A toy artifact: one layer of attention with a cache, two sites, real files, the real op.

And a place to build from: a tiny Llama checkpoint, a plan and two tenants' data. No torch.
"""

import json
import shutil
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import ModuleType

import numpy as np
import numpy.typing as npt
import onnx
import onnx.parser
import pytest
import safetensors.numpy
import tokenizers
from onnx import external_data_helper, numpy_helper

from compiler.adapter import Adapter, target_tensors, uniform
from compiler.artifact import file_records, publish, staging_folder, write_manifest
from compiler.frozen_weights import site_record
from compiler.manifest import BaseRecord, KvCache, Manifest, StoredArray
from compiler.tenants import bank_sites, describe, lower_onto, tenant_folder, write_tenant
from planner import Spec, recommend
from planner.documents import dump
from planner.method import Site, Target, method
from planner.update import fold

Floats = npt.NDArray[np.float32]

HIDDEN, LABELS_MAX, CONTEXT = 24, 4, 64
SPREAD = np.float32(0.4)
BASE_DIGEST = "b" * 64
WORDS = ["<pad>", "<end>", *"abcdefghijklmn"]
ROLES = {
    "layer.query": "attention.query",
    "layer.value": "attention.value",
    "classifier": "classifier",
}

HEADER = """
<ir_version: 10, opset_import: ["": 21, "ai.paretune": 1]>
toy (int64[batch, sequence] input_ids, int64[batch, total] attention_mask {inputs})
    => ({outputs})
    <{initializers}>
{{
    tokens = Gather(embedding, input_ids)
    one_axis = Constant<value_ints = [1]>()
"""

SITE = """
    ["{site}"] {output} = ai.paretune.QuantLowRankMatMul
        <out_features = {out}, in_features = 24, precision = "exact", site = {index}>
        ({input}, "{site}.weight", "", "", "", "", "", {bias} {bank})
"""

CAUSAL = """
    places = Gather(position_table, position_ids)
    x = Add(tokens, places)
    {query} {value}
    query_heads = Unsqueeze(query, one_axis)
    key_heads = Unsqueeze(x, one_axis)
    value_heads = Unsqueeze(value, one_axis)
    "present.0.key" = Concat<axis = 2>("past.0.key", key_heads)
    "present.0.value" = Concat<axis = 2>("past.0.value", value_heads)
    keys = Transpose<perm = [0, 1, 3, 2]>("present.0.key")
    scores = MatMul(query_heads, keys)
    zero = Constant<value_int = 0>()
    one = Constant<value_int = 1>()
    total = Shape<start = 1, end = 2>(attention_mask)
    count = Shape<start = 1, end = 2>(input_ids)
    earlier = Sub(total, count)
    total_scalar = Squeeze(total)
    earlier_scalar = Squeeze(earlier)
    columns = Range(zero, total_scalar, one)
    lines = Range(earlier_scalar, total_scalar, one)
    line_column = Unsqueeze(lines, one_axis)
    causal = LessOrEqual(columns, line_column)
    mask_axes = Constant<value_ints = [1, 2]>()
    real = Cast<to = 9>(attention_mask)
    real_columns = Unsqueeze(real, mask_axes)
    seen = And(causal, real_columns)
    low = Constant<value_float = -1e9>()
    masked = Where(seen, scores, low)
    attention = Softmax<axis = -1>(masked)
    mixed = MatMul(attention, "present.0.value")
    context = Squeeze(mixed, one_axis)
    y = Add(x, context)
    all_logits = MatMul(y, head)
    zero_axis = Constant<value_ints = [0]>()
    from_end = Neg(keep)
    start = Unsqueeze(from_end, zero_axis)
    end = Constant<value_ints = [9223372036854775807]>()
    logits = Slice(all_logits, start, end, one_axis)
}}
"""

CLASSIFIER = """
    {query} {value}
    both = Add(query, value)
    real = Cast<to = 1>(attention_mask)
    last_axis = Constant<value_ints = [2]>()
    real_columns = Unsqueeze(real, last_axis)
    counted = Mul(both, real_columns)
    pooled = ReduceSum<keepdims = 0>(counted, one_axis)
    {classifier}
}}
"""

CAUSAL_INPUTS = """, int64[batch, sequence] position_ids, float[batch, 1, past, 24] "past.0.key",
    float[batch, 1, past, 24] "past.0.value", int64 keep"""
CAUSAL_OUTPUTS = """float[batch, kept, 16] logits, float[batch, 1, total, 24] "present.0.key",
    float[batch, 1, total, 24] "present.0.value" """
BANK_INPUTS = ", uint8[bank_bytes] bank, int64[batch] slot"


def draw(generator: np.random.Generator, shape: tuple[int, ...]) -> Floats:
    return generator.normal(size=shape).astype(np.float32)


def toy_adapter(
    kind: str,
    *,
    seed: int,
    rank: int | None = None,
    labels: tuple[str, ...] | None = None,
    base_digest: str = BASE_DIGEST,
) -> Adapter:
    """An adapter on those of the toy's sites that the method adapts, with random tensors.

    What the whole model owns does not depend on the seed.
    """
    generator = np.random.default_rng(seed)
    recipe = method(kind)
    names = [n for n in ("layer.query", "layer.value") if recipe.tensors_for(ROLES[n])]
    sizes = dict.fromkeys(("out", "in", "max_out", "max_in"), HIDDEN) | {"rank": rank or 0}
    shared = np.random.default_rng(0)
    tensors = {
        spec.name: SPREAD * draw(shared, spec.resolve(sizes)) for spec in recipe.model_tensors()
    }
    tensors |= {
        f"{name}.{spec.name}": SPREAD * draw(generator, spec.resolve(sizes))
        for name in names
        for spec in recipe.tensors_for(ROLES[name])
    }
    if labels is not None:
        tensors["classifier.weight"] = SPREAD * draw(generator, (len(labels), HIDDEN))
        tensors["classifier.bias"] = draw(generator, (len(labels),))
    return uniform(
        method=kind,
        rank=rank,
        alpha=None if rank is None else 2.0 * rank,
        targets=tuple(Target(name, ROLES[name], HIDDEN, HIDDEN) for name in names),
        tensors=tensors,
        base_digest=base_digest,
        seed=seed,
        labels=labels,
        template="text" if labels is None else None,
    )


def weights(task: str) -> dict[str, Floats]:
    """Initializers by name; the head of the causal model is plain, that of the classifier zero."""
    generator = np.random.default_rng(0)
    shapes = {
        "embedding": (len(WORDS), HIDDEN),
        "layer.query.weight": (HIDDEN, HIDDEN),
        "layer.query.bias": (HIDDEN,),
        "layer.value.weight": (HIDDEN, HIDDEN),
    }
    if task == "causal_lm":
        shapes |= {"position_table": (CONTEXT, HIDDEN), "head": (HIDDEN, len(WORDS))}
    drawn = {n: SPREAD * draw(generator, s) for n, s in shapes.items()}
    if task == "sequence_classification":
        drawn["classifier.weight"] = np.zeros((LABELS_MAX, HIDDEN), np.float32)
    return drawn


def graph_text(task: str, kind: str, initializers: Mapping[str, Floats]) -> str:
    """The graph in ONNX's own text form."""

    def site(index: int, name: str, source: str, output: str, features: int) -> str:
        bias = f"{name}.bias" if f"{name}.bias" in initializers else ""
        return SITE.format(
            site=name,
            output=output,
            out=features,
            input=source,
            index=index if kind == "unmerged" else -1,
            bias=f'"{bias}"',
            bank=", bank, slot" if kind == "unmerged" else "",
        )

    causal = task == "causal_lm"
    bank = BANK_INPUTS if kind == "unmerged" else ""
    header = HEADER.format(
        inputs=(CAUSAL_INPUTS if causal else "") + bank,
        outputs=CAUSAL_OUTPUTS if causal else f"float[batch, {LABELS_MAX}] logits",
        initializers=", ".join(
            f'float[{",".join(map(str, value.shape))}] "{name}"'
            for name, value in initializers.items()
        ),
    )
    source = "x" if causal else "tokens"
    body = (CAUSAL if causal else CLASSIFIER).format(
        query=site(0, "layer.query", source, "query", HIDDEN),
        value=site(1, "layer.value", source, "value", HIDDEN),
        classifier=site(2, "classifier", "pooled", "logits", LABELS_MAX),
    )
    return header + body


def write_model(folder: Path, task: str, kind: str, initializers: Mapping[str, Floats]) -> None:
    """model.onnx with its initializers in model.onnx.data."""
    model = onnx.parser.parse_model(graph_text(task, kind, initializers))
    del model.graph.initializer[:]
    for name, value in initializers.items():
        tensor = numpy_helper.from_array(value, name)
        external_data_helper.set_external_data(tensor, "model.onnx.data")
        model.graph.initializer.append(tensor)
    onnx.save(model, folder / "model.onnx")


def write_words(folder: Path) -> None:
    """A tokenizer of one token per letter, and the config that names its special tokens."""
    vocabulary = {word: index for index, word in enumerate(WORDS)}
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="<pad>"))
    words.pre_tokenizer = tokenizers.pre_tokenizers.Split("", "isolated")
    words.decoder = tokenizers.decoders.Fuse()
    words.add_special_tokens(["<pad>", "<end>"])
    words.save(str(folder / "tokenizer.json"))
    config = {"pad_token_id": 0, "eos_token_id": 1}
    (folder / "config.json").write_text(json.dumps(config), "utf-8")


def stored_array(tensor: onnx.TensorProto) -> StoredArray:
    place = {entry.key: entry.value for entry in tensor.external_data}
    return StoredArray.model_validate(
        {
            "file": place["location"],
            "offset_bytes": int(place["offset"]),
            "length_bytes": int(place["length"]),
            "dtype": "float32",
            "shape": tuple(tensor.dims),
        }
    )


def describe_model(folder: Path, task: str, kind: str) -> Manifest:
    """A manifest without tenants and files."""
    model = onnx.load(folder / "model.onnx", load_external_data=False)
    stored = {tensor.name: stored_array(tensor) for tensor in model.graph.initializer}
    targets = [
        Target(site, role, LABELS_MAX if site == "classifier" else HIDDEN, HIDDEN)
        for site, role in ROLES.items()
        if f"{site}.weight" in stored
    ]
    return Manifest(
        kind=kind,
        task=task,
        base=BaseRecord(digest=BASE_DIGEST, name="toy"),
        format="fp32",
        precision="exact",
        sites=tuple(site_record(target, stored) for target in targets),
        inputs=tuple(value.name for value in model.graph.input),
        outputs=tuple(value.name for value in model.graph.output),
        kv=KvCache(layers=1, kv_heads=1, head_dim=HIDDEN) if task == "causal_lm" else None,
        context_length=CONTEXT,
        tenants={},
        files={},
    )


def stage_artifact(out: Path, tenants: Mapping[str, Adapter], task: str) -> Path:
    """Everything of an unmerged artifact, in the staging folder of `out`."""
    staging = staging_folder(out)
    staging.mkdir(parents=True)
    write_model(staging, task, "unmerged", weights(task))
    write_words(staging)
    manifest = describe_model(staging, task, "unmerged")
    for name, adapter in tenants.items():
        lowered = lower_onto(staging, manifest, adapter)
        write_tenant(staging / tenant_folder(name), bank_sites(manifest), adapter, lowered)
    records = {n: describe(n, a, i) for i, (n, a) in enumerate(tenants.items(), start=1)}
    finished = manifest.model_copy(update={"tenants": records, "files": file_records(staging)})
    write_manifest(staging, finished)
    return staging


def make_artifact(
    out: Path, tenants: Mapping[str, Adapter] | None = None, task: str = "causal_lm"
) -> Path:
    """A published unmerged artifact of the toy."""
    publish(stage_artifact(out, tenants or {}, task), out)
    return out


def make_merged(out: Path, name: str, adapter: Adapter) -> Path:
    """A published artifact of the toy with one tenant folded in."""
    staging = staging_folder(out)
    staging.mkdir(parents=True)
    folded = weights("causal_lm")
    for target in adapter.targets:
        weight, bias = folded[f"{target.name}.weight"], folded.get(f"{target.name}.bias")
        site = Site(target, weight, bias, adapter.scalings[target.name])
        update = method(adapter.method).update(target_tensors(adapter, target), site)
        folded[f"{target.name}.weight"], shift = fold(update, weight)
        if shift is not None:
            folded[f"{target.name}.bias"] = shift if bias is None else bias + shift
    write_model(staging, "causal_lm", "merged", folded)
    write_words(staging)
    record = describe(name, adapter, 1).model_copy(update={"files": ()})
    manifest = describe_model(staging, "causal_lm", "merged")
    update = {"tenants": {name: record}, "files": file_records(staging)}
    write_manifest(staging, manifest.model_copy(update=update))
    publish(staging, out)
    return out


LLAMA = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 96,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "bos_token_id": None,
    "eos_token_id": 1,
    "pad_token_id": 0,
}
LLAMA_LINEARS = {
    "self_attn.q_proj": (64, 64),
    "self_attn.k_proj": (32, 64),
    "self_attn.v_proj": (32, 64),
    "self_attn.o_proj": (64, 64),
    "mlp.gate_proj": (128, 64),
    "mlp.up_proj": (128, 64),
    "mlp.down_proj": (64, 128),
}
STEPS = {"odd": 1, "even": 2}
"""What each tenant of a place counts in."""


def write_llama(folder: Path, *, layers: int = 2, tied: bool = False) -> None:
    """A checkpoint with random weights and a tokenizer of 96 words."""
    folder.mkdir(parents=True)
    shapes = {"model.embed_tokens": (96, 64)} | ({} if tied else {"lm_head": (96, 64)})
    norms = ["model.norm"]
    for layer in (f"model.layers.{number}" for number in range(layers)):
        shapes |= {f"{layer}.{name}": shape for name, shape in LLAMA_LINEARS.items()}
        norms += [f"{layer}.input_layernorm", f"{layer}.post_attention_layernorm"]
    generator = np.random.default_rng(0)
    tensors = {f"{n}.weight": np.float32(0.05) * draw(generator, s) for n, s in shapes.items()}
    tensors |= {f"{name}.weight": np.ones(64, np.float32) for name in norms}
    safetensors.numpy.save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    config = {**LLAMA, "num_hidden_layers": layers, "tie_word_embeddings": tied}
    (folder / "config.json").write_text(json.dumps(config), "utf-8")
    write_vocabulary(folder)


def write_vocabulary(folder: Path) -> None:
    """A tokenizer of whole words: <pad>, <end>, w0 … w93."""
    vocabulary = ["<pad>", "<end>", *(f"w{number}" for number in range(94))]
    ids = {word: number for number, word in enumerate(vocabulary)}
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel(ids, unk_token="<pad>"))
    words.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    words.save(str(folder / "tokenizer.json"))
    special = {"eos_token": "<end>", "pad_token": "<pad>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(special), "utf-8")


def write_lines(path: Path, lines: Iterable[object]) -> None:
    path.write_text("".join(f"{json.dumps(line)}\n" for line in lines), "utf-8")


def write_plan(folder: Path, task: str, **training: int) -> None:
    """plan.json for LoRA of rank 4 on the model in `folder`."""
    spec = {
        "task": task,
        "model": str(folder / "model"),
        "vram_gib": 4,
        "pinned": {
            "method": "lora",
            "rank": 4,
            "format": "fp32",
            "export": "unmerged",
            "batch_size": 8,
            "sequence_length": 32,
        },
        "training": {"hardware": "cpu-2core", **training},
    }
    made = recommend(Spec.model_validate_json(json.dumps(spec)))
    (folder / "plan.json").write_text(dump(made), "utf-8")


def write_place(folder: Path, *, layers: int = 2, tied: bool = False, max_steps: int) -> None:
    """model/, plan.json, and <tenant>.jsonl of two tenants who count from any number onwards."""
    write_llama(folder / "model", layers=layers, tied=tied)
    for tenant, step in STEPS.items():
        counted = [[f"w{first + k * step}" for k in range(8)] for first in range(60)]
        lines = [{"prompt": " ".join(c[:2]), "completion": " ".join(c[2:])} for c in counted]
        write_lines(folder / f"{tenant}.jsonl", lines)
    write_plan(folder, "causal_lm", max_steps=max_steps, checkpoint_every=2, evaluate_every=4)


def build_words(
    place: Path, out: Path, *options: str, tenants: Sequence[str] = tuple(STEPS)
) -> list[str]:
    """The words after `compiler` that build from a place."""
    data = [f"--data={tenant}={place / f'{tenant}.jsonl'}" for tenant in tenants]
    words = ["build", str(place / "plan.json"), f"--model={place / 'model'}", *data]
    return [*words, f"--out={out}", f"--cache={place / 'cache'}", "--quiet", *options]


def build_command(place: Path, out: Path) -> list[str]:
    """The same build in a process of its own."""
    start = [sys.executable, "-c", "from compiler.cli import start; start()"]
    return [*start, *build_words(place, out)]


TENANTS = {
    "acme": toy_adapter("lora", seed=1, rank=2),
    "zeta": toy_adapter("dora", seed=2, rank=5),
    "third": toy_adapter("ia3", seed=3),
}
"""Three methods, two ranks."""

CLASSIFIERS = {
    "topics": toy_adapter("lora", seed=4, rank=2, labels=("art", "law", "sport", "war")),
    "spam": toy_adapter("lora", seed=5, rank=1, labels=("ham", "spam")),
}


@pytest.fixture(scope="session")
def toy() -> ModuleType:
    """This module: fixtures cannot be imported where tests are no package."""
    return sys.modules[__name__]


@pytest.fixture(scope="session")
def shared_artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An artifact with the three tenants, which no test may change."""
    return make_artifact(tmp_path_factory.mktemp("shared") / "toy", TENANTS)


@pytest.fixture
def artifact(shared_artifact: Path, tmp_path: Path) -> Path:
    """A copy of its own for a test that changes it."""
    return Path(shutil.copytree(shared_artifact, tmp_path / "toy"))


@pytest.fixture(scope="session")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An artifact with two classification tenants, which no test may change."""
    folder = tmp_path_factory.mktemp("classifier") / "toy"
    return make_artifact(folder, CLASSIFIERS, "sequence_classification")
