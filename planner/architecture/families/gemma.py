"""Gemma (Mesnard et al., 2024): Llama's blocks with wide heads, a tied head and GeGLU."""

from planner.architecture.families import llama

FAMILY = llama.FAMILY._replace(
    activation="gelu_tanh",
    # Its hidden_act says gelu, and transformers computes the tanh form all the same.
    activation_field="hidden_activation",
    options={"head_dim": 256},
    tied=True,
)
