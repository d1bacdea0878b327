"""Metrics by name. `get("accuracy").score(predictions, references)`; every score is higher-is-better."""

from __future__ import annotations

from dollartune.errors import unknown_name
from dollartune.metrics.base import Metric, Statistics
from dollartune.metrics.breakdown import OTHER, breakdown, label_from_text
from dollartune.metrics.classification import (
    Accuracy,
    AreaUnderCurve,
    BalancedAccuracy,
    BinaryF1,
    ClassRecall,
    MacroF1,
    Matthews,
)
from dollartune.metrics.exact_match import ExactMatch
from dollartune.metrics.loss import bits_per_byte, mean_loss, perplexity
from dollartune.metrics.rouge import Rouge
from dollartune.metrics.translation import Bleu, Chrf
from dollartune.metrics.uncertainty import standard_error

__all__ = [
    "OTHER",
    "Metric",
    "Statistics",
    "bits_per_byte",
    "breakdown",
    "counts_rare_classes",
    "get",
    "label_from_text",
    "mean_loss",
    "names",
    "perplexity",
    "standard_error",
]

_METRICS: dict[str, Metric] = {
    metric.name: metric
    for metric in (
        *(Accuracy(), BalancedAccuracy(), MacroF1(), Matthews(), AreaUnderCurve()),
        *(Rouge(variant) for variant in ("1", "2", "L")),
        *(Rouge(variant, part) for variant in ("1", "2", "L") for part in ("precision", "recall")),
        *(Bleu(), Chrf(), ExactMatch()),
    )
}
_ALIASES = {"f1_macro": "f1", "macro_f1": "f1", "mcc": "matthews", "roc_auc": "auc"}


def get(name: str) -> Metric:
    """The measure of that name; `f1:LABEL` is the F1 of one class, `recall:LABEL` its recall.

    Raises:
        UserError: unknown name.
    """
    if name.startswith("f1:") and name != "f1:":
        return BinaryF1(name.removeprefix("f1:"))
    if name.startswith("recall:") and name != "recall:":
        return ClassRecall(name.removeprefix("recall:"))
    metric = _METRICS.get(_ALIASES.get(name, name))
    if metric is None:
        raise unknown_name("measure", name, [*_METRICS, *_ALIASES, "f1:LABEL", "recall:LABEL"])
    return metric


def counts_rare_classes(name: str) -> bool:
    """Whether a measure counts a rare class for as much as a common one, or is about one class: training should then too."""
    return _ALIASES.get(name, name) in ("f1", "balanced_accuracy", "matthews") or name.startswith(("f1:", "recall:"))


def names() -> list[str]:
    """Names of all measures, in alphabetical order; `f1:LABEL` and `recall:LABEL` exist for every label beside them."""
    return sorted(_METRICS)
