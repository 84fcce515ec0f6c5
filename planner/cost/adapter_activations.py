"""What adapters and casts keep for the backward pass, beside the activations of the base."""

from planner.architecture import Architecture
from planner.cost.activations import blocks
from planner.cost.adapter import AdapterCost
from planner.cost.elementwise import larger, where
from planner.cost.step import Step
from planner.cost.weights import QUANTISED


def adapter_activation_bytes(shape: Architecture, adapter: AdapterCost, step: Step) -> float:
    """Per token, of all adapters."""
    attended = adapter.attended_inputs if step.attention == "full" else 0
    if step.trains_base:
        return (adapter.saved_elements + attended) * step.element
    casts = _casts_inputs(step)
    inner = adapter.saved_elements - adapter.shared_inputs
    element = step.adapter_element if casts and not step.program.autocasts else step.element
    repeated: float = 0
    if step.program.fuses_qkv:
        # Its one adapter drops its input once, and keeps outputs that it copies into a padded one.
        repeated = adapter.repeated_inputs
        inner = inner + adapter.partial_outputs
    own = adapter.own_inputs - repeated
    if step.stream_element != step.element and step.attention == "flash":
        # The kernel gave it in the arithmetic's type, and keeps it.
        own = own - adapter.attended_inputs
    if step.dropout:
        # A mask of every adapted linear's input, and the dropped input of those that keep theirs.
        drops = adapter.dropped_inputs > 0
        inputs = where(drops, own, adapter.shared_inputs + attended)
        return (inner + inputs) * element + where(drops, adapter.dropped_inputs - repeated, 0)
    if casts:
        # A product keeps its factors as they came, whatever type it is computed in.
        return (
            inner - adapter.saved_outputs + own
        ) * element + adapter.saved_outputs * step.element
    if step.format in step.program.keeps_quantised_inputs:
        # The product with the weight keeps them already.
        return inner * element
    twice = adapter.inner_inputs if _keeps_its_output(shape, step) else 0
    return (inner + adapter.shared_inputs + attended - twice) * element


def _casts_inputs(step: Step) -> bool:
    """Whether adapters read copies of their own."""
    if step.stream_element != step.element:
        return True
    casts = step.program.casts_inputs and step.adapter_dtype != step.compute
    return casts and not (step.program.autocasts and step.format in QUANTISED)


def quantised_input_bytes(shape: Architecture, step: Step) -> float:
    """Per token, what quantised products keep: this micro-batch's, and the last one's."""
    framework = step.program
    if step.format not in framework.keeps_quantised_inputs:
        return 0.0
    inputs = min(shape.wide_norms - 1, 2 * blocks(shape)) * shape.hidden
    if step.stream_element != step.element:
        # Of every product its own: query, key, value and the gate come on top.
        inputs += blocks(shape) * (2 * (not shape.fused_qkv) + shape.gated) * shape.hidden
    quantised = shape.active_intermediate if framework.quantises_experts else shape.intermediate
    inputs += blocks(shape) * quantised
    attended = blocks(shape) * shape.heads * shape.head_dim
    if step.attention == "full":
        inputs += attended
    if framework.keeps_last_graph:
        # An output that the attention kept was freed with its graph, but for this product.
        inputs += inputs + (attended if step.attention == "flash" else 0)
    return inputs * step.element


def cached_bytes(shape: Architecture, step: Step) -> int:
    """Of one learned position: keys and values of all layers, as attention reads them."""
    heads = shape.heads if step.program.repeats_keys else shape.kv_heads
    return 2 * shape.layers * heads * shape.head_dim * step.element


def cast_bytes(shape: Architecture, adapter: AdapterCost, step: Step) -> float:
    """Copies of trained numbers in the arithmetic's type, alive through a pass."""
    if step.trains_base:
        return step.element * _cast_parameters(shape, step)
    if not step.program.casts_adapters or step.adapter_dtype == step.compute:
        return 0.0
    return larger(adapter.read_elements, adapter.trainable_parameters) * step.element


def _cast_parameters(shape: Architecture, step: Step) -> int:
    """Of a trained base: the embedding's copy is not kept; the compiler's loss has the head's."""
    if step.trained_element == step.element:
        return 0
    embedding = not (shape.tied and step.causal)
    head = step.causal and step.program.master_bytes is not None
    return shape.parameters - (embedding + head) * shape.vocab * shape.hidden


def inner_bytes(shape: Architecture, adapter: AdapterCost, step: Step) -> float:
    """What the adapter of an MLP's last linear keeps of its input, and lets go after its turn."""
    if _keeps_its_output(shape, step):
        return 0.0
    return step.tokens * adapter.inner_inputs * step.element / blocks(shape)


def _keeps_its_output(shape: Architecture, step: Step) -> bool:
    """What ReLU keeps is its output, which the MLP's last linear reads unless some is dropped."""
    dropped = step.program.drops and shape.drops_inner
    return shape.activation == "relu" and not shape.gated and not dropped
