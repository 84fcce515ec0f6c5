"""RoBERTa (Liu et al., 2019): BERT's blocks; two rows of the positions belong to no token."""

from dataclasses import replace

from planner.architecture.families import bert

FAMILY = replace(bert.FAMILY, reserved_positions=2)
