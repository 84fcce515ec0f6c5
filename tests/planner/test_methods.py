"""Every declaration: counts against Hugging Face PEFT and the papers, costs, the listing."""

import json
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path

import peft
import pytest
import torch
from click.testing import CliRunner
from peft.optimizers import create_lorafa_optimizer
from torch import nn
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    BertConfig,
    LlamaConfig,
    T5Config,
)

import planner.methods
from planner import catalog
from planner.adapters import adapted, select
from planner.architecture import Architecture, architecture
from planner.case import Case
from planner.cli import main
from planner.cost.adapter import AdapterCost, adapter_cost, lora_rank, misfit, target_set
from planner.cost.trace import linear_cost
from planner.errors import UsageError
from planner.estimation import estimate
from planner.method import (
    Method,
    Target,
    TensorSpec,
    buildable,
    buildable_method,
    method,
    methods,
    model_dimensions,
    target_dimensions,
)

# PEFT warns of sizes it adjusts, of models without biases and of its own deprecations.
pytestmark = pytest.mark.filterwarnings("ignore")

CONFIGS = {
    "llama": LlamaConfig(
        vocab_size=96,
        hidden_size=512,
        intermediate_size=768,
        num_hidden_layers=2,
        num_attention_heads=8,
        num_key_value_heads=4,
    ),
    "bert": BertConfig(
        vocab_size=96,
        hidden_size=256,
        intermediate_size=512,
        num_hidden_layers=3,
        num_attention_heads=4,
    ),
    "t5": T5Config(vocab_size=96, d_model=256, d_kv=64, d_ff=512, num_layers=2, num_heads=4),
}
LOADERS = {"llama": AutoModelForCausalLM, "bert": AutoModel, "t5": AutoModelForSeq2SeqLM}
TASKS = {"llama": "CAUSAL_LM", "bert": "FEATURE_EXTRACTION", "t5": "SEQ_2_SEQ_LM"}
SIZES = {"llama": 0, "bert": -1, "t5": 1}
"""Which of a method's sizes: the least, the greatest, one between."""
DOWN = ("down_proj", "output.dense", "wo")

Names = list[str]


def pairs(**flags: object) -> Callable[[int, Names], peft.PeftConfig]:
    return lambda size, names: peft.LoraConfig(r=size, target_modules=names, **flags)  # type: ignore[arg-type]


PEFT: dict[str, Callable[[int, Names], peft.PeftConfig]] = {
    **dict.fromkeys(("lora", "lora_plus", "qlora", "eva", "loftq"), pairs()),
    "rslora": pairs(use_rslora=True),
    "dora": pairs(use_dora=True),
    **dict.fromkeys(("pissa", "qpissa"), pairs(init_lora_weights="pissa")),
    "olora": pairs(init_lora_weights="olora"),
    "adalora": lambda size, names: peft.AdaLoraConfig(
        init_r=size, target_r=size // 2, total_step=10, target_modules=names
    ),
    "vera": lambda size, names: peft.VeraConfig(r=size, target_modules=names),
    "vb_lora": lambda size, names: peft.VBLoRAConfig(r=size, target_modules=names),
    "randlora": lambda size, names: peft.RandLoraConfig(r=size, target_modules=names),
    "ia3": lambda _, names: peft.IA3Config(
        target_modules=names, feedforward_modules=[n for n in names if n.endswith(DOWN)]
    ),
    "bitfit": lambda _, names: peft.BeftConfig(target_modules=names),
    "ln_tuning": lambda _, names: peft.LNTuningConfig(target_modules=names),
    "oft": lambda size, names: peft.OFTConfig(oft_block_size=size, target_modules=names),
    "boft": lambda size, names: peft.BOFTConfig(boft_block_size=size, target_modules=names),
    "hra": lambda size, names: peft.HRAConfig(r=size, target_modules=names),
    "loha": lambda size, names: peft.LoHaConfig(r=size, target_modules=names),
    "lokr": lambda size, names: peft.LoKrConfig(r=size, target_modules=names),
    "fourierft": lambda size, names: peft.FourierFTConfig(n_frequency=size, target_modules=names),
    "c3a": lambda size, names: peft.C3AConfig(block_size=size, target_modules=names),
    "shira": lambda size, names: peft.ShiraConfig(r=size, target_modules=names),
    "miss": lambda size, names: peft.MissConfig(r=size, target_modules=names),
    "road": lambda _, names: peft.RoadConfig(target_modules=names),
    "prefix_tuning": lambda size, _: peft.PrefixTuningConfig(num_virtual_tokens=size),
    "prompt_tuning": lambda size, _: peft.PromptTuningConfig(num_virtual_tokens=size),
    "p_tuning": lambda size, _: peft.PromptEncoderConfig(num_virtual_tokens=size),
}
ELSEWHERE = {"full", "lora_fa", "llama_adapter", "x_lora"}
"""Compared below: no configuration of PEFT alone says what they train."""
NOT_IN_PEFT = {
    *("tied_lora", "houlsby", "pfeiffer", "galore", "hybrid_lora"),
    *("lr_lora", "balora", "molf", "mole"),
}


def test_every_method_is_compared_with_peft_or_by_hand() -> None:
    assert set(methods()) == set(PEFT) | ELSEWHERE | NOT_IN_PEFT


def tiny(family: str) -> tuple[nn.Module, Architecture]:
    torch.manual_seed(0)
    model = LOADERS[family].from_config(CONFIGS[family])
    return model, architecture(CONFIGS[family].to_dict())


def cost_of(name: str, size: int | None, shape: Architecture) -> AdapterCost:
    found = method(name)
    targets = tuple(t for t in shape.targets if t.role in found.targets)
    return adapter_cost(found, size, adapted(found, target_set(targets)), shape)


def trained(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def modules(name: str, shape: Architecture) -> Names:
    found = method(name)
    if any(spec.scope == "norm" for spec in found.tensors):
        return [norm.name for norm in shape.norms]
    return [t.name for t in shape.targets if found.tensors_for(t.role) and t.role in found.targets]


@pytest.mark.parametrize("family", CONFIGS)
@pytest.mark.parametrize("name", PEFT)
def test_counts_are_those_of_peft(name: str, family: str) -> None:
    model, shape = tiny(family)
    ranks = method(name).ranks
    size = ranks[SIZES[family]] if ranks else None
    config = PEFT[name](size or 0, modules(name, shape))
    config.task_type = TASKS[family]
    theirs = peft.get_peft_model(model, config)
    assert cost_of(name, size, shape).trainable_parameters == trained(theirs)


def scales(model: nn.Module, named: object, last: Names) -> int:
    """What PEFT's IA3 trains there, those of `last` at their input."""
    config = peft.IA3Config(target_modules=named, feedforward_modules=last)  # type: ignore[arg-type]
    return trained(peft.get_peft_model(model, config))


@pytest.mark.parametrize("family", CONFIGS)
def test_ia3_on_every_linear_counts_what_peft_does(family: str) -> None:
    model, shape = tiny(family)
    linears = select(("all-linear",), shape)
    theirs = scales(
        model, [t.name for t in linears], [t.name for t in linears if t.role == "mlp.down"]
    )
    cost = adapter_cost(method("ia3"), None, adapted(method("ia3"), target_set(linears)), shape)
    assert cost.trainable_parameters == theirs


@pytest.mark.parametrize(
    ("model", "targets", "named"),
    [
        ("llama-3.2-3b", ("all-linear",), "all-linear"),
        ("llama-3.2-3b", ("q_proj", "down_proj"), ["q_proj", "down_proj"]),
        ("llama-3.1-8b", (".*_proj", "lm_head"), ".*(_proj|lm_head)"),
    ],
)
def test_an_estimate_of_ia3_counts_every_target_that_is_named(
    model: str, targets: tuple[str, ...], named: object
) -> None:
    with torch.device("meta"):
        whole = AutoModelForCausalLM.from_config(LlamaConfig(**catalog.model(model).config))
    theirs = scales(whole, named, ["down_proj"])
    found = estimate(Case(model=model, method="ia3", targets=targets))
    assert found.figures["trainable_parameters"].value == theirs


@pytest.mark.parametrize("family", CONFIGS)
def test_full_fine_tuning_trains_every_parameter(family: str) -> None:
    model, shape = tiny(family)
    assert cost_of("full", None, shape).trainable_parameters == trained(model)


@pytest.mark.parametrize("family", CONFIGS)
def test_lora_fa_trains_what_the_optimizer_of_peft_leaves_trainable(family: str) -> None:
    model, shape = tiny(family)
    theirs = peft.get_peft_model(model, pairs()(8, modules("lora_fa", shape)))
    create_lorafa_optimizer(theirs, r=8, lora_alpha=8, lr=1e-3)
    assert cost_of("lora_fa", 8, shape).trainable_parameters == trained(theirs)


def test_llama_adapter_trains_what_peft_does() -> None:
    model, shape = tiny("llama")
    config = peft.AdaptionPromptConfig(
        adapter_len=10, adapter_layers=shape.layers, task_type="CAUSAL_LM"
    )
    theirs = trained(peft.get_peft_model(model, config))
    assert cost_of("llama_adapter", 10, shape).trainable_parameters == theirs


def test_x_lora_trains_what_peft_does(tmp_path: Path) -> None:
    model, shape = tiny("llama")
    peft.get_peft_model(model, pairs()(4, ["q_proj"])).save_pretrained(tmp_path)
    model, _ = tiny("llama")
    model.config.use_cache = False
    adapters = {str(number): str(tmp_path) for number in range(4)}
    config = peft.XLoraConfig(task_type="CAUSAL_LM", hidden_size=512, adapters=adapters)
    theirs = trained(peft.get_peft_model(model, config))
    assert cost_of("x_lora", 4, shape).trainable_parameters == theirs


@pytest.mark.parametrize(
    ("name", "size", "expected"),
    [
        ("lora", 32, 9_175_040),
        ("lora_fa", 32, 3_670_016),
        ("dora", 32, 9_289_728),
        ("adalora", 64, 18_353_664),
        ("vera", 256, 129_024),
        ("vb_lora", 4, 1_212_416),
        ("randlora", 32, 9_289_728),
        ("ln_tuning", None, 175_104),
        ("oft", 96, 8_171_520),
        ("boft", 4, 802_816),
        ("loha", 32, 18_350_080),
        ("fourierft", 1000, 56_000),
        ("c3a", 64, 5_505_024),
        ("shira", 32, 9_175_040),
        ("miss", 64, 7_340_032),
        ("prefix_tuning", 200, 11_468_800),
        ("prompt_tuning", 200, 614_400),
        ("p_tuning", 20, 28_382_208),
        ("llama_adapter", 100, 8_601_628),
        ("full", None, 3_212_749_824),
    ],
)
def test_counts_are_those_of_pefts_benchmark(name: str, size: int | None, expected: int) -> None:
    """Llama-3.2-3B, on q and v where linears are adapted (methods.md, section 4.1)."""
    shape = catalog.model("llama-3.2-3b").architecture
    found = method(name)
    query_value = target_set(select(("attention.query", "attention.value"), shape))
    targets = adapted(found, query_value) if found.targets else target_set(())
    assert adapter_cost(found, size, targets, shape).trainable_parameters == expected


ATTENTION = [(4096, 4096), (1024, 4096), (1024, 4096), (4096, 4096)]
PER_LAYER = [*ATTENTION, (14336, 4096), (14336, 4096), (4096, 14336)]
"""Out and in of the linears of a Llama-3.1-8B block: 32 blocks, 4096 wide."""
PAIRS = 32 * 16 * sum(out + in_ for out, in_ in PER_LAYER)
WHOLE = 32 * sum(out * in_ for out, in_ in PER_LAYER)
BASE = 8_030_261_248


@pytest.mark.parametrize(
    ("name", "size", "expected"),
    [
        # A and B once for each of the seven roles, u and v for each linear.
        ("tied_lora", 16, PAIRS // 32 + 32 * sum(16 + out for out, _ in PER_LAYER)),
        # 4096 / 16 = 256: D, its bias, U, its bias.
        ("pfeiffer", 16, 32 * (2 * 4096 * 256 + 256 + 4096)),
        ("houlsby", 16, 64 * (2 * 4096 * 256 + 256 + 4096)),
        ("galore", 128, BASE),
        ("molf", 16, BASE + PAIRS),
        # Nine tenths of the linears get pairs and one tenth is trained whole.
        ("hybrid_lora", 16, round(0.9 * PAIRS + 0.1 * WHOLE)),
        # Amplitude, frequency and place of eight functions, for each of 7 x 32 linears.
        ("lr_lora", 16, PAIRS + 32 * 7 * 3 * 8),
        # 4096 -> 256 -> 256 -> 32 layers.
        ("balora", 16, PAIRS + 256 * 4097 + 256 * 257 + 32 * 257),
        # One weight per expert from the outputs of four experts, and a temperature, in each block.
        ("mole", 4, 32 * (4 * 4096 * 4 + 1)),
    ],
)
def test_counts_are_those_of_the_papers(name: str, size: int, expected: int) -> None:
    shape = catalog.model("llama-3.1-8b").architecture
    assert cost_of(name, size, shape).trainable_parameters == expected


def test_galore_keeps_moments_of_projected_gradients() -> None:
    shape = catalog.model("llama-3.1-8b").architecture
    sides = [(max(pair), min(pair)) for pair in PER_LAYER]
    projected = 32 * sum(2 * 128 * wide + 128 * narrow for wide, narrow in sides)
    expected = projected + 2 * (BASE - WHOLE)
    assert cost_of("galore", 128, shape).optimizer_elements == expected
    assert cost_of("full", None, shape).optimizer_elements == 2 * BASE


@pytest.mark.parametrize(
    ("name", "size", "rank"),
    [
        ("lora", 16, 16),
        ("pissa", 16, 32),
        ("vera", 256, 256),
        ("loha", 8, 64),
        # 4096 = 64 x 64 on both sides, so the Kronecker product of 64 and rank 8.
        ("lokr", 8, 512),
        ("fourierft", 1000, 2000),
        ("miss", 64, 64),
        ("hra", 8, 8),
        ("bitfit", None, None),
        ("prompt_tuning", 20, None),
    ],
)
def test_lora_rank_of_a_conversion(name: str, size: int | None, rank: int | None) -> None:
    """Queries of Llama-3.1-8B, 4096 x 4096 (methods.md, section 2.2)."""
    shape = catalog.model("llama-3.1-8b").architecture
    targets = target_set(select(("attention.query",), shape))
    assert lora_rank(method(name), size, targets, shape) == rank


@pytest.mark.parametrize("name", methods())
@pytest.mark.parametrize("model", ["smollm2-135m", "all-minilm-l6-v2", "gpt2"])
def test_every_cost_is_a_whole_number_and_trains_something(name: str, model: str) -> None:
    shape = catalog.model(model).architecture
    for size in method(name).ranks or (None,):
        cost = cost_of(name, size, shape)
        assert all(isinstance(value, int) and value >= 0 for value in cost)
        assert cost.trainable_parameters > 0


@pytest.mark.parametrize("name", methods())
def test_what_is_served_unmerged_has_a_row(name: str) -> None:
    shape = catalog.model("llama-3.1-8b").architecture
    found = method(name)
    for size in found.ranks or (None,):
        row = cost_of(name, size, shape).row_bytes
        assert (row > 0) == ("unmerged" in found.serves)


class OneLinear(nn.Module):
    def __init__(self, out: int, in_: int) -> None:
        super().__init__()
        self.linear = nn.Linear(in_, out, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(x)


def kept(model: nn.Module, tokens: int, width: int) -> tuple[bool, int]:
    """Whether the backward pass keeps the input, and elements of everything else but parameters."""
    x = torch.randn(tokens, width, requires_grad=True)
    held: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        if not tensor.is_sparse:
            storage = tensor.untyped_storage()
            held[storage.data_ptr()] = storage.nbytes() // 4
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        model(x)
    for tensor in (*model.parameters(), *model.buffers()):
        held.pop(tensor.untyped_storage().data_ptr(), None)
    saves_input = held.pop(x.untyped_storage().data_ptr(), None) is not None
    return saves_input, sum(held.values())


@pytest.mark.parametrize(("out", "in_"), [(256, 512), (512, 256)])
@pytest.mark.parametrize("name", [name for name in PEFT if method(name).targets])
def test_what_a_linear_keeps_is_what_peft_keeps(name: str, out: int, in_: int) -> None:
    """Per token exactly; per pass to six numbers for each trained one, which are copies of it."""
    found = method(name)
    size = found.ranks[0] if found.ranks else 0
    torch.manual_seed(0)
    model = peft.get_peft_model(OneLinear(out, in_), PEFT[name](size, ["linear"]))
    (input_kept, few), (_, many) = kept(model, 64, in_), kept(model, 128, in_)
    target = Target("linear", "attention.key", out, in_)
    lengths = target_dimensions(target, size) | model_dimensions((target,)) | {found.size: size}
    cost = linear_cost(found, target, lengths)
    assert (cost.saves_input, cost.saved_elements) == (input_kept, (many - few) // 64)
    # PEFT sends the identity [in, in] through DoRA's pair for the norm; the compiler does not.
    dense = in_**2 if name == "dora" else 0
    per_pass = few - 64 * cost.saved_elements
    assert abs(per_pass - cost.pass_elements - dense) <= 6 * trained(model)


def test_prompts_lengthen_the_input_and_prefixes_the_cache() -> None:
    shape = catalog.model("llama-3.1-8b").architecture
    prompt, prefix = cost_of("prompt_tuning", 20, shape), cost_of("prefix_tuning", 20, shape)
    assert (prompt.input_tokens, prompt.cache_tokens) == (20, 0)
    assert (prefix.input_tokens, prefix.cache_tokens) == (0, 20)
    # P-tuning's perceptron is used up.
    assert cost_of("p_tuning", 20, shape).stored_bytes == prompt.stored_bytes


def test_what_is_frozen_or_summed_keeps_no_input() -> None:
    """One value projection [256, 512]: LoRA keeps x and A x; the others only A x, or the sums."""
    shape = architecture(CONFIGS["llama"].to_dict())
    values = target_set(select(("model.layers.0.self_attn.v_proj",), shape))
    saved = {
        name: adapter_cost(method(name), 16, values, shape).saved_elements
        for name in ("lora", "lora_fa", "miss")
    }
    assert saved == {"lora": 512 + 16, "lora_fa": 16, "miss": 16}


@pytest.mark.parametrize(
    ("name", "size", "reason", "fitting"),
    [
        ("vb_lora", 4, "its side 576 is no multiple of 256", None),
        ("c3a", 256, "blocks of 256 do not fill its side 576", 64),
        ("shira", 512, "are more than the 331776 of its weight", 64),
        ("boft", 5, "blocks of 5 do not fill its width 576", 4),
        ("oft", 1, "blocks of 1 of its width 576 have nothing to rotate", 2),
        ("hra", 3, "an odd number of reflections", 4),
        ("miss", 1024, "rank 1024 is more than its width 576", 64),
    ],
)
def test_targets_that_a_size_does_not_fit_are_named(
    name: str, size: int, reason: str, fitting: int | None
) -> None:
    shape = catalog.model("smollm2-135m").architecture
    queries = target_set(select(("attention.query",), shape))
    assert reason in (misfit(method(name), size, queries, shape) or "")
    assert fitting is None or misfit(method(name), fitting, queries, shape) is None


def test_the_file_of_a_method_is_called_as_it_is() -> None:
    folder = Path(planner.methods.__file__).parent
    assert {file.stem for file in folder.glob("*.py")} - {"__init__"} == set(methods())


def test_titles_are_unique() -> None:
    assert len({found.title for found in methods().values()}) == len(methods())


def test_what_builds() -> None:
    built = "bitfit dora full ia3 lora lora_fa lora_plus pissa qlora rslora vera"
    assert set(buildable()) == set(built.split())
    with pytest.raises(UsageError, match="does not build the method 'oft' yet"):
        buildable_method("oft")


def listed(*options: str) -> str:
    result = CliRunner().invoke(main, ["methods", *options])
    assert result.exit_code == 0, result.output
    return result.output


def test_the_listing_has_a_line_for_every_method() -> None:
    first = [line.split()[0] for line in listed().splitlines()[1:]]
    assert first == list(methods())
    assert [line.split()[0] for line in listed("--buildable").splitlines()[1:]] == list(buildable())
    assert listed("lora", "--buildable") == listed("lora")
    assert CliRunner().invoke(main, ["methods", "galore", "--buildable"]).exit_code == 2


def test_the_json_listing_holds_every_field() -> None:
    assert "<lambda>" not in listed("--json")
    document = json.loads(listed("--json"))["methods"]
    assert document.keys() == methods().keys()
    shown = {field.name for field in fields(Method)} - {"update", "costs", "misfit", "scaling"}
    renamed = shown - {"name", "default_alpha", "optimizer_elements"} | {"alphas", "runtimes"}
    assert all(row.keys() == renamed for row in document.values())
    assert set(TensorSpec._fields) - {"where", "peft_key"} <= set(document["lora"]["tensors"][0])
    assert document["dora"]["runtimes"]["unmerged"] == ["paretune"]
    assert "vllm" in document["lora"]["runtimes"]["unmerged"]
    assert document["pissa"]["converts_to"] == {"from_rank": 32, "to_rank": 64, "exact": True}
