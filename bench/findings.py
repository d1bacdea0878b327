"""Writes docs/findings.md: which findings of the sources hold for small models, with intervals and plots.

python bench/findings.py STUDIES --out docs        STUDIES: where examples/findings_vision.yaml and examples/sources/*.yaml
                                                   --shrink were run (`make sources`)

Every figure is read from records. A study that has not been run is left out, and the page says so.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import numpy as np
from forest import Estimate, forest
from scipy import special

from dollartune.evidence import PublishedFigures
from dollartune.stats import Outcomes, difference_interval, score_interval
from dollartune.study.compare import boards
from dollartune.study.results import Results
from dollartune.study_file import load_study
from dollartune.trials.store import Store

EXAMPLES = Path(__file__).parents[1] / "examples"
VISION = "findings_vision"
SHRUNK = tuple(f"{path.stem}-small" for path in sorted((EXAMPLES / "sources").glob("*.yaml")))


@dataclass
class Verdict:
    """What became of one finding."""

    file: str
    """Name of the plot."""
    title: str
    claim: str
    estimates: list[Estimate]
    axis: str
    words: list[str] = field(default_factory=list)
    expected: int = 1
    """1: the finding says that the estimates lie above zero; -1: that none does."""

    def sure(self) -> tuple[int, int]:
        """Estimates whose interval leaves zero out: for the finding, against it."""
        above, below = sum(e.low > 0 for e in self.estimates), sum(e.high < 0 for e in self.estimates)
        return (above, below) if self.expected > 0 else (below, above)

    @property
    def outcome(self) -> str:
        if not self.estimates:
            return "not run"
        right, wrong = (count if beyond_luck(count, len(self.estimates)) else 0 for count in self.sure())
        if right and wrong:
            return "mixed"
        if not right:
            return "did not hold" if wrong else "cannot be told"
        return "held" if right * 2 >= len(self.estimates) else "held in part"

    @property
    def counted(self) -> str:
        right, wrong = self.sure()
        if not self.estimates:
            return "-"
        return f"{right} of {len(self.estimates)} comparisons for it, {wrong} against, the rest cannot be told"


def beyond_luck(count: int, estimates: int) -> bool:
    """Whether so many 95 % intervals would leave zero out on one side in less than 5 of 100 cases, were nothing there."""
    # P(Binomial(n, 0.025) >= k), as a regularized incomplete beta function
    return count > 0 and float(special.betainc(count, estimates - count + 1, 0.025)) < 0.05


class Studies:
    """Results of the studies that have been run, by name."""

    def __init__(self, root: Path) -> None:
        found = {name: Store(root / name) for name in (VISION, *SHRUNK)}
        results = {name: Results(store) for name, store in found.items() if store.root.is_dir()}
        self.results = {name: result for name, result in results.items() if result.done()}
        planned = {name: len(result.store.planned() or ()) for name, result in self.results.items()}
        self.unfinished = [
            f"{name} ({len(result.records)} of {planned[name]} trials)"
            for name, result in self.results.items()
            if len(result.records) < planned[name]
        ]
        self.missing = [name for name in found if name not in self.results]

    def of(self, *names: str) -> Iterable[tuple[str, Results]]:
        """Those of the named studies that were run."""
        return ((name, self.results[name]) for name in names if name in self.results)


def difference(results: Results, first: Sequence[Any], second: Sequence[Any], label: str) -> Estimate | None:
    """Paired difference of two variants on the same rows and seeds."""
    one, other = results.outcomes(first), results.outcomes(second)
    if one is None or other is None or one.examples != other.examples:
        return None
    found = difference_interval(one, other)
    return Estimate(label, found.value, found.low, found.high)


def ablation_differences(
    studies: Studies, names: Sequence[str], first: str, second: str, only: str = ""
) -> list[Estimate]:
    """`first` minus `second`, two ablations of one method, on every board that has both."""
    found = []
    for name, results in studies.of(*names):
        for (task, scale), variants in boards(results).items():
            for label, records in variants.items():
                ablation = records[0].trial.ablation
                method = records[0].trial.group
                if ablation is None or ablation.name != first or (only and method != only):
                    continue
                rival = variants.get(label.replace(f": {first}", f": {second}"))
                estimate = rival and difference(
                    results, records, rival, f"{method}, {task}, {scale} rows{_where(name)}"
                )
                if estimate:
                    found.append(estimate)
    return found


def _where(name: str) -> str:
    return " (ViT)" if name == VISION else ""


def faster_full(studies: Studies) -> Verdict:
    """Reference 001, section 3.2: passes over the data until the validation loss is lowest."""
    verdict = Verdict(
        "convergence",
        "Full tuning converges in fewer passes than the others on little data",
        "Reference 001, section 3.2 and Table 4: 60 to 87 % faster with 100 rows, 16 to 64 % with 1,000.",
        [],
        "epochs to the lowest validation loss: method minus full tuning",
    )
    for name, results in studies.of(VISION, "001_table1-small"):
        by_scale: dict[tuple[int, str], list[float]] = defaultdict(list)
        for (_, scale), variants in boards(results).items():
            whole = {r[0].trial.group: r for r in variants.values() if r[0].trial.ablation is None}
            full = {r.trial.seed: r.training.best_epoch for r in whole.get("full", []) if r.training}
            for method, records in whole.items():
                if method != "full" and records[0].training:
                    pairs = [(r.training.best_epoch, full.get(r.trial.seed)) for r in records if r.training]
                    by_scale[scale or 0, method] += [mine - theirs for mine, theirs in pairs if theirs is not None]
        for (scale, method), values in sorted(by_scale.items()):
            if len(values) > 1:
                verdict.estimates.append(_mean(f"{method}, {scale} rows{_where(name)}", values))
    verdict.words.append(
        "A training of three or four epochs is short: a method whose loss still falls at the end is counted there, so that "
        "the difference is a lower bound."
    )
    return verdict


def _mean(label: str, values: Sequence[float]) -> Estimate:
    """Mean with Student's 95 % interval over seeds and tasks."""
    half = float(special.stdtrit(len(values) - 1, 0.975)) * stdev(values) / len(values) ** 0.5
    return Estimate(label, fmean(values), fmean(values) - half, fmean(values) + half)


def late_layers(studies: Studies) -> Verdict:
    names = (VISION, "001_ablations_ia3-small", "001_ablations_lora-small")
    return Verdict(
        "layers",
        "Late layers matter more than early ones",
        "Reference 001, section 3.3 and Table 2: the later half of the layers keeps the quality, the early half does not.",
        ablation_differences(studies, names, "last 50%", "first 50%"),
        "score of the late half minus score of the early half",
    )


def attention(studies: Studies) -> Verdict:
    names = (VISION, "001_ablations_ia3-small")
    return Verdict(
        "attention",
        "Attention matters most for (IA)3",
        "Reference 001, section 3.3 and Table 2: without attention (IA)3 loses far more than without the feed-forward.",
        ablation_differences(studies, names, "drop dense", "drop attention", "ia3"),
        "score without the feed-forward minus score without attention",
    )


def majority(studies: Studies) -> Verdict:
    """Reference 000: each variant against always saying the most frequent label of the training data."""
    verdict = Verdict(
        "majority",
        "A dollar of tuning does not beat the majority class on BoolQ",
        "Reference 000: OPT-125m, all methods below always answering yes (0.613).",
        [],
        "accuracy minus that of always answering yes, on the same rows",
        expected=-1,
    )
    for name, results in studies.of("000_opt_125m-small", "000_opt_350m-small"):
        for variants in boards(results).values():
            for label, records in variants.items():
                mine = results.outcomes(records)
                rows = results.predictions(records[0].id)
                yes = Outcomes.from_values(np.array([[float(row["expected"] == "yes") for row in rows]]), "accuracy")
                if mine is not None:
                    found = difference_interval(mine, yes)
                    group = "opt-125m" if "125m" in name else "opt-350m"
                    verdict.estimates.append(Estimate(f"{label} ({group})", found.value, found.low, found.high))
    verdict.words.append(
        "An interval below zero is for the finding, one above zero against it. Here every answer is scored among the labels; the "
        "source let the model write freely, where answers that are no label count as wrong."
    )
    return verdict


def always_best(studies: Studies) -> str:
    """Reference 001: on each board the methods that may be best, and those that may be best everywhere."""
    lines = ["| study | task | rows | cannot be told apart from the best |", "|---|---|---:|---|"]
    everywhere: set[str] | None = None
    for name, results in studies.of(VISION, "001_table1-small"):
        for (task, scale), comparison in results.comparisons.items():
            whole = {r.trial.label: r.trial.group for r in results.done() if r.trial.ablation is None}
            best = {whole[s.method] for s in comparison.standings if s.may_be_best and s.method in whole}
            everywhere = best if everywhere is None else everywhere & best
            lines.append(f"| {name} | {task} | {scale or 'all'} | {', '.join(sorted(best))} |")
    if everywhere is None:
        return "Not run.\n"
    left = ", ".join(sorted(everywhere))
    said = (
        f"**It cannot be told**: {left} may be the best on every one of these boards."
        if everywhere
        else "**It held**: no method is among the best on every board."
    )
    return said + "\n\n" + "\n".join(lines) + "\n"


def beside(studies: Studies) -> str:
    """Published figures beside measured ones, for every shrunk source."""
    lines = []
    for name, results in studies.of(*SHRUNK):
        figures = PublishedFigures(load_study(results.store.root / "study.yaml"))
        rows = []
        for (task, scale), variants in boards(results).items():
            for label, records in variants.items():
                metric = records[0].metric
                published = figures.of(records[0].trial, metric)
                sampled = results.outcomes(records)
                interval = score_interval(sampled) if sampled is not None else None
                measured = f"{fmean(r.test.score for r in records):.3f}"
                span = f"{interval.low:.3f} to {interval.high:.3f}" if interval else "-"
                theirs = "; ".join(f"{p.finding.value:g} ({p.finding.model.split('/')[-1]})" for p in published) or "-"
                rows.append(f"| {task} | {scale} | {label} | {metric} | {measured} | {span} | {theirs} |")
        head = (
            "| task | rows | method | measure | here | 95 % | published, other model |\n|---|---:|---|---|---:|---|---|"
        )
        backbone = results.done()[0].trial.backbone
        lines.append(f"### {name.removesuffix('-small')}, with {backbone}\n\n{head}\n" + "\n".join(rows) + "\n")
    return "\n".join(lines)


def page(studies: Studies, out: Path) -> str:
    """The whole page; plots are written beside it."""
    verdicts = [faster_full(studies), late_layers(studies), attention(studies), majority(studies)]
    records = [record for results in studies.results.values() for record in results.done()]
    seconds = sum(record.cost.seconds for record in records)
    parts = [
        "# The sources, and what held in small\n",
        f"Made by `python bench/findings.py STUDIES --out docs` from {len(records)} trials ({seconds / 60:.0f} minutes of a "
        "shared two-core machine; `make sources` runs them again). The studies repeat the sources' settings "
        "(`examples/sources`) with the embedded backbones on a few dozen rows (`--shrink`), and "
        "reference 001's methods and ablations once more on a small vision transformer that has learned its trade "
        "(`examples/findings_vision.yaml`, three seeds). **They are other models than the sources'**: what holds here is "
        "a hint, and what does not hold here is no contradiction.\n",
    ]
    if studies.missing:
        parts.append(f"Not run yet: {', '.join(studies.missing)}.\n")
    if studies.unfinished:
        parts.append(f"Not finished yet: {', '.join(studies.unfinished)}. What there is of them is shown.\n")
    parts += ["| finding | here | comparisons |", "|---|---|---|"]
    parts += [f"| {v.title} | **{v.outcome}** | {v.counted} |" for v in verdicts]
    parts += [
        "",
        "An estimate counts only where its 95 % interval leaves zero out, and only where more do so than luck explains; *held* "
        "asks it of at least half of them. Where no interval leaves zero out, nothing was shown, not even that nothing is "
        "there. The text backbones learn little from so few rows: where every variant gives the same answers, nothing can be "
        "told.\n",
    ]
    (out / "findings").mkdir(parents=True, exist_ok=True)
    for verdict in verdicts:
        parts += [
            f"## {verdict.title}\n",
            f"{verdict.claim}\n",
            f"**{verdict.outcome.capitalize()}**: {verdict.counted}.\n",
        ]
        parts += [f"{text}\n" for text in verdict.words]
        if verdict.estimates:
            file = f"findings/{verdict.file}.svg"
            (out / file).write_text(forest(verdict.estimates, verdict.title, verdict.axis))
            parts.append(f"![{verdict.title}]({file})\n")
    parts += ["## No method is always best\n", "Reference 001, section 3.2 and Table 1.\n", always_best(studies)]
    parts += ["## Every figure beside the published one\n",
              "Scores of small models on a few dozen test rows, and what the source printed for the setting that each stands "
              "for. The two do not compare.\n", beside(studies)]  # fmt: skip
    return "\n".join(parts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("studies", type=Path)
    parser.add_argument("--out", type=Path, default=Path("docs"))
    arguments = parser.parse_args()
    text = page(Studies(arguments.studies), arguments.out)
    (arguments.out / "findings.md").write_text(text)
    print(f"wrote {arguments.out / 'findings.md'}")


if __name__ == "__main__":
    main()
