"""Expected differences to LoRA from published ones: one linear model, solved once.

    effect = class + method + method in this family of tasks
             - slope(family) x (doublings short of the data - the reference's)
             + gain from few examples + prompts' gain from scale - quantisation loss
             + inflation where the authors report their own + what too low a rate does to a method
             + what this study, laboratory and run of the reference share + the run's noise

An effect is a difference in log-odds, as points at a score of 50, for differences in points fade
where scores are near 0 or 100. Every term is an unknown with a Gaussian prior. So an estimate
shrinks from its rows to its method, to its class and to no difference, and rows that share a run,
a laboratory or an author count less than as many independent ones. What only a source explains
(its authors, its learning rates) is estimated to be set aside. Runs fail at times, LoRA's among
them, so a run's deviation is Student-t and one far off moves the others little. The prior widths
are stated causes of spread in round numbers; the held-out scores of tests/bench/bench_ranking.py
hardly move when any one of them is halved or doubled. Those of the largest marginal likelihood
leave methods, prompts apart, next to no spread of their own, and score no better.
"""

import math
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from planner.quality.causes import (
    REFERENCE,
    few,
    scale,
    smallness,
)
from planner.quality.rows import Row, run_variance

if TYPE_CHECKING:
    from numpy.typing import NDArray

Key = tuple[str, ...]
Terms = dict[Key, float]

WIDTHS = {"low rank": (1.0, 1.0), "prompt": (8.0, 4.0), "full": (2.0, 2.0)}
"""Of a class and of its methods, in points. Tuned variants of LoRA stay within 1 to 2 points of it
(claim-tuned); the other classes are less alike."""
OTHER_WIDTHS = (3.0, 2.0)
PRIORS: dict[str, tuple[float, float]] = {
    "family": (0.0, 1.0),  # of a method, from one family of tasks to the next
    "inflation": (0.0, 3.0),  # of results that authors report on their own method
    "author": (0.0, 1.5),  # the same, from one author to the next
    "low rate": (0.0, 3.0),  # what a rate below LoRA's best does for a method
    "capacity": (1.0, 1.0),  # lost for each doubling of parameters that is missing
    "capacity family": (0.0, 1.0),
    "capacity source": (0.0, 1.0),
    "few": (0.0, 1.5),  # of a class, for each tenfold of examples that is missing
    "few method": (0.0, 1.0),
    "scale": (0.0, 5.0),  # of prompts, for each tenfold of the base's parameters
    "nf4": (1.0, 1.0),  # lost at 7e9 parameters
    "nf4 family": (0.0, 1.0),
    "fp4": (0.5, 1.0),  # lost beyond NF4
    "int8": (0.0, 0.5),
    "small": (6.0, 6.0),  # lost to four bits at 135e6 parameters
}
"""Mean and standard deviation, in points."""
SPREAD = {"tuned": 1.0, "fixed": 3.0, "low": 3.0}
"""Of a study, of a laboratory and of its LoRA, by how learning rates were set."""
RATE_POINTS = {"prompt": 5.0, "vector": 2.5, "shared": 2.5, "structured": 2.0}
OTHER_RATE_POINTS = 0.5
"""Lost by a learning rate that is off by a factor of two, by class (claim-rates)."""
RATE_DOUBLINGS = 0.5
"""How far a published rate, or a method's default, is off: sqrt(2) either way; assumed."""
SETTING_POINTS = 2.0
"""Of a method from one model and data set to the next within a study."""
FREEDOM = 4.0
"""Degrees of freedom of a run's deviation (Lange, Little and Taylor, JASA 84, 1989)."""
REWEIGHTINGS = 8
"""Further ones move no estimate by 0.05 points."""


def method_terms(
    method: str, kind: str, family: str | None, examples: int | None, parameters_b: float
) -> Terms:
    """The unknowns of a method at capacity that suffices; none for LoRA itself."""
    if method == REFERENCE:
        return {}
    found: Terms = {("class", kind): 1.0, ("method", method): 1.0}
    if family is not None:
        found[("family", method, family)] = 1.0
    scarcity = few(examples)
    if scarcity:
        found |= {("few", kind): scarcity, ("few method", method): scarcity}
    if kind == "prompt":
        found[("scale",)] = scale(parameters_b)
    return found


def capacity_terms(family: str, doublings: float) -> Terms:
    return {("capacity",): -doublings, ("capacity family", family): -doublings}


def format_terms(format_: str, family: str, parameters_b: float, *, encoder: bool) -> Terms:
    """What a quantised base loses: a family's loss at 7e9, growing to a common one at 135e6.

    Encoders and encoder-decoders have lost nothing at any size (claim-nf4-encoder).
    """
    if format_ not in ("nf4", "fp4", "int8"):
        return {}
    if format_ == "int8":
        return {("int8",): -1.0}
    small = 0.0 if encoder else smallness(parameters_b)
    found: Terms = {("nf4",): small - 1.0, ("nf4 family", family): small - 1.0}
    if small:
        found[("small",)] = -small
    return found if format_ == "nf4" else found | {("fp4",): -1.0}


ENCODERS = ("T5", "RoBERTa", "BART", "DeBERTa", "BERT")


def causes(row: Row, classes: Mapping[str, str]) -> Terms:
    """The unknowns that make a row's difference, but for what only its source shares."""
    encoder = row.model.startswith(ENCODERS)

    def of(method: str, format_: str) -> Terms:
        known = method_terms(method, classes[method], row.family, row.examples, row.parameters_b)
        return known | format_terms(format_, row.family, row.parameters_b, encoder=encoder)

    found = of(row.method, row.format)
    for key, weight in of(row.reference, row.reference_format).items():
        found[key] = found.get(key, 0.0) - weight
    if row.shortage:
        found |= capacity_terms(row.family, row.shortage)
    return {key: weight for key, weight in found.items() if weight}


def circumstances(row: Row, classes: Mapping[str, str]) -> Terms:
    """The unknowns of a row's source: estimated to be set aside when a build is predicted."""
    found: Terms = {("study", row.study, classes[row.method], row.rate): 1.0}
    found[("table", *row.table, row.rate, row.metric)] = 1.0
    if row.method != REFERENCE:
        found[("laboratory", row.source, row.rate)] = 1.0
    if row.shortage:
        found[("capacity source", row.source, row.family)] = -row.shortage
    if row.rate == "low" and row.method not in (REFERENCE, "full"):
        # Rates below LoRA's best are full fine-tuning's own.
        found[("low rate", row.method)] = 1.0
    if row.self_reported:
        found[("inflation",)] = float(row.self_reported)
        found[("author", row.source)] = float(row.self_reported)
    return found


def rate_points(kind: str) -> float:
    """What an untuned learning rate adds to the spread of a class."""
    return RATE_DOUBLINGS * RATE_POINTS.get(kind, OTHER_RATE_POINTS)


def prior(key: Key, classes: Mapping[str, str]) -> tuple[float, float]:
    """Mean and variance of an unknown."""
    name = key[0]
    if name == "class":
        return 0.0, WIDTHS.get(key[1], OTHER_WIDTHS)[0] ** 2
    if name == "method":
        return 0.0, WIDTHS.get(classes[key[1]], OTHER_WIDTHS)[1] ** 2
    if name == "study":
        return 0.0, SPREAD[key[-1]] ** 2 + rate_points(key[2]) ** 2
    if name == "laboratory":
        return 0.0, SPREAD[key[-1]] ** 2
    if name == "table":
        return 0.0, SPREAD[key[-2]] ** 2 + run_variance(key[-1], float(key[-3]))
    mean, width = PRIORS[name]
    return mean, width**2


class Posterior(NamedTuple):
    """Joint mean and covariance of the unknowns in the rows; any other keeps its prior."""

    place: dict[Key, int]
    mean: "NDArray[Any]"
    covariance: "NDArray[Any]"
    classes: Mapping[str, str]

    def expect(self, terms: Terms) -> tuple[float, float]:
        """Mean and standard deviation of a sum of unknowns."""
        known = {self.place[k]: w for k, w in terms.items() if k in self.place}
        mean = sum(w * float(self.mean[i]) for i, w in known.items())
        variance = sum(
            v * w * float(self.covariance[i, j]) for i, v in known.items() for j, w in known.items()
        )
        for key, weight in terms.items():
            if key not in self.place:
                centre, spread = prior(key, self.classes)
                mean += weight * centre
                variance += weight**2 * spread
        return mean, math.sqrt(max(variance, 0.0))


def fit(rows: Iterable[Row], classes: Mapping[str, str]) -> Posterior:
    """Condition the priors on the rows: normal-normal, with runs that fail reweighted.

    A Student-t deviation is a normal one whose variance is unknown; each variance is replaced by
    what its deviation is expected to show (expectation-maximisation).
    """
    import numpy as np  # noqa: PLC0415

    rows = list(rows)
    terms = [causes(row, classes) | circumstances(row, classes) for row in rows]
    place: dict[Key, int] = {}
    for found in terms:
        for key in found:
            place.setdefault(key, len(place))
    design = np.zeros((len(rows), len(place)))
    for i, found in enumerate(terms):
        for key, weight in found.items():
            design[i, place[key]] = weight
    priors = [prior(key, classes) for key in place]
    centre = np.array([mean for mean, _ in priors])
    stated = np.array([variance for _, variance in priors])
    reference_run = np.array([key[0] == "table" for key in place])
    sampling = np.array([run_variance(row.metric, row.value) for row in rows])
    left = np.array([row.effect for row in rows]) - design @ centre
    alike = np.full(len(rows), SETTING_POINTS**2)
    spread, setting = stated, alike
    for _ in range(REWEIGHTINGS):
        gain = spread[:, None] * design.T
        inverse = np.linalg.inv(design @ gain + np.diag(sampling + setting))
        pull = inverse @ left
        unsure = setting - setting**2 * np.diag(inverse)
        shared = gain[reference_run]
        unsure_shared = spread[reference_run] - np.sum((shared @ inverse) * shared, axis=1)
        setting = heavy(alike, (setting * pull) ** 2 + unsure)
        spread = stated.copy()
        spread[reference_run] = heavy(stated[reference_run], (shared @ pull) ** 2 + unsure_shared)
    gain = spread[:, None] * design.T
    weights = np.linalg.solve(design @ gain + np.diag(sampling + setting), gain.T).T
    return Posterior(place, centre + weights @ left, np.diag(spread) - weights @ gain.T, classes)


def heavy(stated: "NDArray[Any]", square: "NDArray[Any]") -> "NDArray[Any]":
    """Variance of a Student-t deviation of stated variance, given its expected square."""
    found: NDArray[Any] = (FREEDOM * stated + square) / (FREEDOM + 1.0)
    return found
