"""RoBERTa (Liu et al., 2019): BERT's blocks; two rows of the positions belong to no token."""

from planner.architecture.families import bert

FAMILY = bert.FAMILY._replace(reserved_positions=2)
