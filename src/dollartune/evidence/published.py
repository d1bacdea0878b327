"""What a study's source published for the settings of the study: figures to set beside measured ones, and what was paid.

The source's models, sizes and machines are its own. A study cut by `--shrink` says which published setting each of its
smaller ones stands for (`source.uncut`); what is found here then belongs to *other models*, and says so.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dollartune.errors import unknown_name
from dollartune.evidence.findings import Finding, tables

if TYPE_CHECKING:
    from dollartune.config import StudySettings
    from dollartune.trials.record import TrialFacts

MEASURES = {"exact_match": "accuracy", "rouge_l": "rougeL", "rouge_1": "rouge1", "rouge_2": "rouge2"}
"""A published measure -> its name in a record, where they differ."""

ABLATIONS = {
    "first 50%": "early_layers",
    "last 50%": "late_layers",
    "random 50%": "random_half",
    "drop self_attn": "drop_self_attention",
    "drop cross_attn": "drop_cross_attention",
    "drop q o": "drop_query_output",
    "drop attention": "drop_attention",
    "drop dense": "drop_dense",
}
"""An ablation of a study -> what the tables call it."""

# The paper's words for the projections, and the roles that `where:` takes.
ROLES = {"query": "self_attn.q", "key": "self_attn.k", "value": "self_attn.v"}
# Both measures of time say seconds; what each of them covers is in `paid`.
SPENT = {"cost_usd": "dollars", "seconds": "seconds", "convergence_seconds": "seconds"}


@dataclass(frozen=True)
class Paid:
    """What a source says that its runs cost."""

    dollars: float | None
    """None if it says neither dollars nor seconds on a machine with a price."""
    seconds: float | None
    covers: str
    """What the figure covers, in words."""


@dataclass(frozen=True)
class Published:
    """A published figure for one trial's setting."""

    finding: Finding
    metric: str
    """The measure's name in records."""
    other_model: bool
    """The trial ran on another backbone, or on less, than the figure."""

    @property
    def citation(self) -> str:
        return f"{tables()[self.finding.table].citation}, {self.finding.model}"


def source_findings(settings: StudySettings) -> tuple[Finding, ...]:
    """All figures of the tables that a study repeats; none where it repeats none.

    Raises:
        UserError: an unknown table.
    """
    names = settings.source.tables if settings.source is not None else []
    for name in names:
        if name not in tables():
            raise unknown_name("table", name, tables(), "See dollartune.evidence.tables().")
    return tuple(finding for name in names for finding in tables()[name].findings)


def source_machine(settings: StudySettings) -> str | None:
    """The machine that the source ran this study's models on: a row of the price table, or None if it names none."""
    models = {one.name for one in settings.backbones}
    used = {f.machine for f in source_findings(settings) if f.model in models and f.machine is not None}
    # Figures from several machines have no common price per hour.
    return used.pop() if len(used) == 1 else None


def paid(settings: StudySettings) -> Paid | None:
    """What the source says that the runs of this study cost, as far as it says so."""
    from dollartune.budget.prices import machines

    models = {one.name for one in settings.backbones}
    mine = [f for f in source_findings(settings) if f.metric in SPENT and f.model in models]
    if not mine:
        return None
    dollars = sum(f.value for f in mine if f.metric == "cost_usd")
    seconds = sum(f.value for f in mine if f.metric != "cost_usd")
    # Printed dollars are taken as they are: our prices are of another year.
    if dollars:
        return Paid(dollars, None, f"{len(mine)} runs, as printed")
    machine = source_machine(settings)
    price = machines()[machine].dollars_per_hour if machine is not None else None
    until = "until the best validation loss only" if mine[0].metric == "convergence_seconds" else "tuning and inference"
    # Seconds times today's price: said as such where it is shown.
    return Paid(price * seconds / 3600 if price else None, seconds, f"{len(mine)} runs, {until}")


class PublishedFigures:
    """Finds the published figures of a study's trials.

    Examples:
        >>> figures = PublishedFigures(settings)
        >>> figures.of(record.trial, "accuracy")
    """

    def __init__(self, settings: StudySettings) -> None:
        from dollartune.trials.trial import variants

        self.findings = source_findings(settings)
        uncut = settings.source.uncut if settings.source is not None else None
        self.backbones = set(uncut.backbones if uncut else [one.name for one in settings.backbones])
        # Every figure of a shrunk study is another model's, also where a name is the same.
        self._cut = uncut is not None
        now, then = settings.scales, settings.scales
        self._labels = {v.label: v for v in variants(settings.methods)}
        if uncut is not None:
            then = uncut.scales
            # A shrunk study keeps the order of its variants, so the n-th small one stands for the n-th of the source.
            self._labels = dict(zip(self._labels, variants(uncut.methods), strict=True))
        self._scales = dict(zip(now, then, strict=True))

    def of(self, trial: TrialFacts, metric: str | None = None) -> list[Published]:
        """The figures for a trial (`record.trial`), one per model and measure; of one measure, if it is given."""
        ablation = trial.ablation
        # ` @ backbone` is added to a label where several backbones are compared.
        label = (ablation.of if ablation else trial.label).split(" @ ")[0]
        variant = self._labels.get(label)
        # Published tables have single methods; a combination of two is nobody's row.
        if variant is None or len(variant.methods) != 1:
            return []
        method = {**dict(variant.methods[0]), "ablation": ABLATIONS.get(ablation.name) if ablation else "all"}
        figures = [
            Published(f, MEASURES.get(f.metric, f.metric), self._cut or f.model != trial.backbone)
            for f in self.findings
            if f.method == trial.group
            and f.model.rstrip("/") in self._models(f)
            and f.data in (trial.task, "any")
            and self._same_scale(f, trial)
            and all(_agrees(key, value, method) for key, value in f.setting.items())
            # A table without ablations would else be quoted for each part left out.
            and (ablation is None or "ablation" in f.setting)
        ]
        return [one for one in figures if metric is None or one.metric == metric]

    def _models(self, finding: Finding) -> set[str]:
        """The study's backbones; a source that gives only a family (`t5`) means any of them."""
        return self.backbones | ({finding.model} if "/" not in finding.model else set())

    def _same_scale(self, finding: Finding, trial: TrialFacts) -> bool:
        """Whether a figure is of the trial's number of rows; `all` rows are as many as the source had."""
        rows = self._scales.get(trial.scale)
        return rows is None or not finding.n_examples or finding.n_examples == rows


def _agrees(key: str, value: Any, method: Mapping[str, Any]) -> bool:
    """Whether a published setting is the trial's; what a method has no setting for (epochs, schedule) is the study's."""
    if key == "where":
        return sorted(ROLES[role] for role in value) == sorted(str(method.get("where", "")).split())
    return key not in method or method[key] == value
