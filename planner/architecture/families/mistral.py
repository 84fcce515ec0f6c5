"""Mistral (Jiang et al., 2023): Llama's blocks; version 0.1 looks back one sliding window."""

from dataclasses import replace

from planner.architecture.families import llama

FAMILY = replace(llama.FAMILY, sliding_layers=lambda _, layers: layers)
