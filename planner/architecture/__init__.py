"""A model's shapes from its config.json: dimensions, linears with their roles, parameter count.

One family of models is one file of planner/architecture/families, named as its model_type.
"""

from planner.architecture.dimensions import Shape
from planner.architecture.fields import Config, digest, shape
from planner.architecture.modules import Norm
from planner.architecture.read import architecture
from planner.architecture.record import Architecture

__all__ = ["Architecture", "Config", "Norm", "Shape", "architecture", "digest", "shape"]
