"""SHiRA (Bhardwaj et al., 2024, arXiv 2406.13175): a sparse difference, as many entries as LoRA's.

Their places are drawn at random and stored beside the values.
"""

from planner.method import TRUNCATED, Cost, Dimensions, Method, TensorSpec


def entries(d: Dimensions) -> int:
    return d["rank"] * (d["in"] + d["out"])


def cost(d: Dimensions) -> Cost:
    dense = d["in"] * d["out"]
    # PEFT adds the entries to a copy of W in every pass.
    return Cost(saves_input=True, pass_elements=dense, workspace_elements=dense)


def misfit(d: Dimensions) -> str | None:
    if entries(d) > d["in"] * d["out"]:
        return f"{entries(d)} entries are more than the {d['in'] * d['out']} of its weight"
    return None


METHOD = Method(
    name="shira",
    title="SHiRA",
    paper="arXiv:2406.13175",
    tensors=(
        TensorSpec("shira_weight", (entries,), "constant", 0.0, peft_key="shira_weight"),
        TensorSpec(
            "shira_indices",
            (2, entries),
            "random_places",
            trainable=False,
            peft_key="shira_indices",
        ),
    ),
    costs={"target": cost},
    ranks=(8, 16, 32, 64),
    misfit=misfit,
    learning_rate=3e-4,
    serves=("merged",),
    converts_to=TRUNCATED,
    peft_config={"peft_type": "SHIRA"},
)
