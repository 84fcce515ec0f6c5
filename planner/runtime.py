"""What each serving runtime can load; a plan never asks one for more."""

from typing import NamedTuple

from planner.method import Method


class RuntimeLimits(NamedTuple):
    """Formats of the base, exports, whether only LoRA pairs load, and which ranks its rows have.

    `compute` is the arithmetic where the device has it. Widths are bytes: of one key or value in
    the cache, of a weight that no format quantises, of a number in an adapter's row.
    A row is allocated with a pair of the next of `row_ranks` for every linear, whichever an adapter
    has; where there are none it is as long as the adapter. `row_embeddings` are the families whose
    embedding and head have such pairs too.
    `logits` says of which tokens of a prompt it has them, "last" or "all"; `writes_scores` on which
    devices attention writes the scores of a whole layer; `ran_on` on which its kernels have run.
    `beside_window` counts the tokens that a sliding layer's cache holds beside its window; None is
    all. `quantises_experts` says whether routed experts, one tensor and no linear, are quantised.
    `tasks` are those of the models that it serves, `merged_tasks` those of which it loads no
    adapters. `families` are the model types that it loads, None where it is any; `merged_families`
    those of which it loads no adapters. `knows_rslora` says whether it takes alpha over the root of
    the rank where an adapter says so.
    """

    formats: tuple[str, ...]
    exports: tuple[str, ...]
    precisions: tuple[str, ...]
    pairs_only: bool
    row_ranks: tuple[int, ...]
    compute: str
    cache_element_bytes: int
    other_bytes: int
    row_element_bytes: int
    source: str
    logits: str = "last"
    writes_scores: tuple[str, ...] = ()
    beside_window: int | None = None
    ran_on: tuple[str, ...] = ("cpu", "gpu")
    quantises_experts: bool = True
    tasks: tuple[str, ...] = (
        "causal_lm",
        "seq2seq_lm",
        "sequence_classification",
        "image_classification",
    )
    merged_tasks: tuple[str, ...] = ()
    families: tuple[str, ...] | None = None
    merged_families: tuple[str, ...] = ()
    knows_rslora: bool = True
    row_embeddings: tuple[str, ...] = ()


SCORES_OF_ONNXRUNTIME = ("cpu",)
"""Of ONNX's Attention: 1,024 MiB of 16 heads over 4,096 tokens on a CPU (1.31, measured); those of
another device are taken to be kept in its caches."""

RUNTIMES = {
    "paretune": RuntimeLimits(
        formats=("fp32", "bf16", "nf4"),
        exports=("unmerged", "merged"),
        precisions=("exact", "fast"),
        pairs_only=False,
        row_ranks=(),
        compute="fp32",
        cache_element_bytes=4,
        other_bytes=4,
        row_element_bytes=4,
        source="this project's fused op and bank; while it writes, the graph's input keep is 1",
        writes_scores=SCORES_OF_ONNXRUNTIME,
        ran_on=("cpu",),
        quantises_experts=False,
    ),
    "onnxruntime": RuntimeLimits(
        formats=("fp32",),
        exports=("merged",),
        precisions=("exact",),
        pairs_only=False,
        row_ranks=(),
        compute="fp32",
        cache_element_bytes=4,
        other_bytes=4,
        row_element_bytes=4,
        source="onnxruntime without a custom op library; while it writes, the graph's input "
        "keep is 1",
        writes_scores=SCORES_OF_ONNXRUNTIME,
    ),
    "onnxruntime-genai": RuntimeLimits(
        formats=("fp32",),
        exports=("unmerged", "merged"),
        precisions=("exact",),
        pairs_only=True,
        row_ranks=(),
        compute="fp32",
        cache_element_bytes=4,
        other_bytes=4,
        row_element_bytes=4,
        source="ONNX Runtime generate() API: LoRA adapters, one active per generator "
        "(onnxruntime.ai/docs/genai/tutorials/finetune.html); its model builder's prune_lm_head is "
        "off by default, and its GroupQueryAttention writes no scores (1.31, measured); its "
        "families and precisions are that builder's (onnxruntime-genai, "
        "src/python/py/models/README.md; its int4 is no NF4)",
        logits="all",
        tasks=("causal_lm",),
        families=(
            *("gemma", "gemma2", "gemma3_text", "llama", "mistral", "phi", "phi3"),
            *("qwen2", "qwen3"),
        ),
    ),
    "vllm": RuntimeLimits(
        formats=("bf16", "nf4"),
        exports=("unmerged", "merged"),
        precisions=("exact",),
        pairs_only=True,
        row_ranks=(1, 8, 16, 32, 64, 128, 256, 320, 512),
        compute="bf16",
        cache_element_bytes=2,
        other_bytes=2,
        row_element_bytes=2,
        source="vLLM --max-lora-rank (vllm/config/lora.py, MaxLoRARanks), without "
        "--lora-target-modules (vllm/lora/layers/base_linear.py, create_lora_weights; utils.py, "
        "get_supported_lora_modules; models/llama.py, embedding_modules); DoRA is refused "
        "(vllm-project/vllm#10849); no encoder that classifies has LoRA "
        "(docs/models/pooling_models/scoring.md), nor have some decoders "
        "(docs/models/supported_models.md); sliding layers reserve their window alone "
        "(docs.vllm.ai/en/latest/design/hybrid_kv_cache_manager)",
        beside_window=0,
        tasks=("causal_lm", "sequence_classification"),
        merged_tasks=("sequence_classification",),
        merged_families=("bloom", "falcon", "gpt2", "gpt_neox", "gptj", "stablelm"),
        row_embeddings=("llama",),
    ),
    "lorax": RuntimeLimits(
        formats=("bf16", "nf4"),
        exports=("unmerged", "merged"),
        precisions=("exact",),
        pairs_only=True,
        row_ranks=(),
        compute="bf16",
        cache_element_bytes=2,
        other_bytes=2,
        row_element_bytes=2,
        source="LoRAX documentation: LoRA adapters, on decoders (README, supported models); its "
        "families are those of server/lorax_server/models/__init__.py, with adapters those of "
        "docs/models/adapters/lora.md",
        tasks=("causal_lm",),
        families=(
            *("bloom", "falcon", "gemma", "gemma2", "gpt2", "gpt_neox", "llama", "mistral"),
            *("mixtral", "opt", "phi", "phi3", "qwen2"),
        ),
        merged_families=("falcon", "gpt_neox", "opt"),
    ),
    "llama.cpp": RuntimeLimits(
        formats=("fp32", "bf16"),
        exports=("unmerged", "merged"),
        precisions=("exact",),
        pairs_only=True,
        row_ranks=(),
        compute="bf16",
        cache_element_bytes=2,
        other_bytes=2,
        row_element_bytes=2,
        source="llama.cpp: GGUF adapters hold lora_a and lora_b only; sliding layers hold their "
        "window and a micro-batch of 512 tokens (ggml-org/llama.cpp#13194, qualcomm/GenieX#1346); "
        "its families are its converter's (conversion/), which transposes what GPT-2 stores "
        "transposed, and PEFT's pairs with it, that are not, and keeps of use_rslora nothing",
        beside_window=512,
        tasks=("causal_lm", "seq2seq_lm"),
        families=(
            *("bloom", "falcon", "gemma", "gemma2", "gemma3_text", "gpt2", "gpt_neox", "llama"),
            *("mistral", "mixtral", "mt5", "olmo2", "phi", "phi3", "qwen2", "qwen2_moe"),
            *("qwen3", "qwen3_moe", "stablelm", "t5"),
        ),
        merged_families=("gpt2",),
        knows_rslora=False,
    ),
}

ON_GPU = {
    # Its graphs for CUDA are of 16 bits (-p bf16, fp16), those for a CPU of 32.
    "onnxruntime-genai": RUNTIMES["onnxruntime-genai"]._replace(
        formats=("fp32", "bf16"),
        compute="bf16",
        cache_element_bytes=2,
        other_bytes=2,
        row_element_bytes=2,
    )
}


def limits_of(runtime: str, kind: str) -> RuntimeLimits:
    """The limits on a device of that kind."""
    return ON_GPU.get(runtime, RUNTIMES[runtime]) if kind == "gpu" else RUNTIMES[runtime]


def untried(runtime: str, kind: str) -> str | None:
    """That the runtime has never run on a device of that kind, or None where it has."""
    ran_on = RUNTIMES[runtime].ran_on
    if kind in ran_on:
        return None
    return f"the runtime {runtime} has run on {' and '.join(d.upper() for d in ran_on)}s only"


def unloadable(runtime: str, kind: str, format_: str) -> str | None:
    """Why the runtime cannot load such a base on a device of that kind, or None."""
    formats = limits_of(runtime, kind).formats
    return None if format_ in formats else f"{runtime} loads {' or '.join(formats)} only"


def serving_runtimes(task: str, family: str) -> tuple[str, ...]:
    """The runtimes that serve a task with models of a family."""
    return tuple(
        name
        for name, limits in RUNTIMES.items()
        if task in limits.tasks and (limits.families is None or family in limits.families)
    )


def refusal(
    runtime: str, task: str, family: str, method: Method, rank: int | None, export: str
) -> str | None:
    """Why the runtime cannot load the method's adapter of a family's model, or None."""
    limits = RUNTIMES[runtime]
    if export == "unmerged" and task in limits.merged_tasks:
        return f"{runtime} loads no adapters for the task '{task}'"
    if export == "unmerged" and family in limits.merged_families:
        return f"{runtime} loads no adapters of the family '{family}'"
    if export not in limits.exports:
        return f"{runtime} serves {' or '.join(limits.exports)} models only"
    if export == "merged" or not limits.pairs_only:
        return None
    conversion = method.converts_to
    is_lora = (method.peft_config or {}).get("peft_type") == "LORA"
    if not is_lora or conversion is None or not conversion.exact:
        return f"{runtime} loads LoRA pairs only"
    if (method.peft_config or {}).get("use_rslora") and not limits.knows_rslora:
        return f"{runtime} divides alpha by the rank, and {method.title} by its root"
    pair_rank = conversion.rank({"rank": rank or 0})
    if limits.row_ranks and pair_rank > limits.row_ranks[-1]:
        return f"{runtime} loads ranks to {limits.row_ranks[-1]} and this is {pair_rank}"
    return None
