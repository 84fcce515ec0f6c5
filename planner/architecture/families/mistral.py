"""Mistral (Jiang et al., 2023): Llama's blocks; version 0.1 looks back one sliding window."""

from planner.architecture.families import llama

FAMILY = llama.FAMILY._replace(sliding_layers=lambda _, layers: layers)
