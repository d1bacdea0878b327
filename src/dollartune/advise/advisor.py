"""Answers "I have N examples, this task, this machine or money; what matters most is ...: which method?"."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from dollartune import format as numbers
from dollartune.advise import framework
from dollartune.advise.answer import Advice, Recommendation
from dollartune.advise.boards import Overall, by_task, overall
from dollartune.advise.from_studies import ranking_from_studies, reason, small
from dollartune.advise.own_study import MethodResult, Priority, at_nearest_scale, cost_in_words, records
from dollartune.budget.limit import BudgetSettings, parse_budget
from dollartune.budget.prices import machine as find_machine
from dollartune.errors import UserError, unknown_name
from dollartune.evidence import RecordedStudy, claims, findings, studies
from dollartune.methods.registry import reference

PRIORITIES: tuple[Priority, ...] = ("time", "memory", "quality", "serving")
TASK_KINDS = ("classification", "generation", "image_classification", "regression", "other")
PUBLISHED_KINDS = ("classification", "generation")
"""Kinds of task on which reference 001 compares methods."""
# The source compares with prompting only where rows are too few for a training and a validation part.
FEW = 50
"""Below this many examples, prompting belongs into the comparison (reference 001, section 3.2)."""
_ASKED = {
    "time": "the shortest way to a good model",
    "memory": "the least memory and storage",
    "quality": "the best score",
    "serving": "many adapters served at once",
}
# fp32 weight, gradient and two moments; bf16; 4 bits with scales per 64 weights (0.5625) and what is not packed.
_ADAM_BYTES, _FROZEN_BYTES, _NF4_BYTES = 16, 2, 0.6
"""Bytes per backbone parameter: fp32 weight, gradient and two moments; bf16 weight; 4-bit weight with its constants."""


def advise(
    n_examples: int,
    task_kind: str,
    priority: Priority = "quality",
    *,
    study_results: Any | None = None,
    machine: str | None = None,
    budget: str | BudgetSettings | None = None,
    memory_bytes: int | None = None,
    backbone_parameters: int | None = None,
) -> Advice:
    """A ranking of methods with reasons and citations.

    Args:
        n_examples: labelled training examples at hand.
        task_kind: one of `TASK_KINDS`.
        priority: what matters most, one of `PRIORITIES`.
        study_results: rows or a pandas frame with `method` and `score`, best also `n_examples`, `seconds` or
            `convergence_seconds`, `peak_bytes`, `trainable_parameters`, `adapter_bytes`. Where it has a method, it wins
            over published numbers.
        machine: a name of `dollartune machines ls`; its memory limits what is recommended.
        budget: `$1`, `20 min`; put into words at the machine's price.
        memory_bytes: of the device, over the machine's.
        backbone_parameters: needed to say what fits.

    Raises:
        UserError: unknown task kind, priority or machine, a negative number of examples, results without columns.
    """
    if priority not in PRIORITIES:
        raise unknown_name("priority", priority, PRIORITIES)
    if task_kind not in TASK_KINDS:
        raise unknown_name("kind of task", task_kind, TASK_KINDS)
    if n_examples < 0:
        raise UserError(f"the number of examples must not be negative, got {n_examples}.")
    gaps: list[str] = []
    rows = records(study_results) if study_results is not None else []
    from_study = _from_study(rows, n_examples, priority, gaps) if rows else []
    evidence = _evidence(n_examples, task_kind, priority, gaps, bool(from_study))
    known = {one.method for one in from_study}
    ranking = from_study + [one for one in evidence if one.method not in known]
    # What was measured on the user's own task beats any table.
    if from_study:  # methods that were not tried are candidates for the next study, behind what was measured
        ranking = from_study + [_demoted(one) for one in ranking[len(from_study) :]]
    # Of one device: nothing here spreads a training over several.
    limit = memory_bytes or (find_machine(machine).device_memory_bytes if machine else None)
    ranking = _fitting(ranking, limit, backbone_parameters, gaps)
    return Advice(
        _question(n_examples, task_kind, priority, machine, budget),
        tuple(sorted(ranking, key=lambda one: not one.recommended)),
        _rests_on(from_study, evidence, priority),
        tuple(gaps),
    )


# -- from the user's study ------------------------------------------------------------------------------------------


def _from_study(
    rows: list[dict[str, object]], n_examples: int, priority: Priority, gaps: list[str]
) -> list[Recommendation]:
    near = at_nearest_scale(rows, n_examples)
    ranked = overall(by_task(near), priority)
    single = [result for one in ranked for _, result in one.boards]
    at = single[0].n_examples
    # By the framework's three scales: within one of them the order holds.
    if at and framework.scale_of(at) != framework.scale_of(n_examples):
        gaps.append(f"your study ran with {at:,} examples, not with {n_examples:,}: the order may change with scale.")
    elif not at:
        gaps.append("your results do not say with how many examples they were trained.")
    if min((one.seeds for one in single if one.method != reference("untuned").name), default=3) < 3:
        gaps.append("some methods ran with fewer than three seeds, so small differences may be luck.")
    if priority != "quality" and single[0].measure is None:
        gaps.append(f"your results have no measure of {priority} for every method, so the score alone decides.")
    if len(by_task(near)) > 1:
        gaps.append("which of your study's tasks is most like the next one: places were averaged over all of them.")
    return [
        Recommendation(one.method, one.good_enough, "own study", (_own_reason(one),), ("your study",)) for one in ranked
    ]


def _own_reason(one: Overall) -> str:
    return _measured_reason(one.boards[0][1]) if len(one.boards) == 1 else reason(one)


def _measured_reason(one: MethodResult) -> str:
    # A row that stands for several seeds (of a leaderboard) does not say how far they lie apart.
    error = f" ± {numbers.score(one.error)}" if numbers.known(one.error) else ""
    seeds = f"{one.seeds} seed{'s' if one.seeds > 1 else ''}"
    parts = [f"score {numbers.score(one.score)}{error} over {seeds}", cost_in_words(one)]
    parts.append(f"with {one.label}" if one.label and one.label != one.method else "")
    if one.compared:
        verdict = (
            "cannot be told apart from the best"
            if one.good_enough
            else "below the best score by more than luck explains"
        )
    else:
        verdict = "within 1 % of the best score" if one.good_enough else "more than 1 % below the best score"
        verdict += ", and how sure that is cannot be said"
    return f"{', '.join(part for part in parts if part)}; {verdict}"


def _demoted(one: Recommendation) -> Recommendation:
    return Recommendation(
        one.method, False, one.basis, (*one.reasons, "not tried in your study: a candidate for the next"), one.citations
    )


# -- from evidence: published tables, and studies that were run with DollarTune ---------------------------------------


def _evidence(
    n_examples: int, task_kind: str, priority: Priority, gaps: list[str], have_own: bool
) -> list[Recommendation]:
    """The published framework with what DollarTune's studies add; where no source measured that kind of task, the studies
    lead."""
    measured_here = ranking_from_studies(studies(), task_kind, n_examples, priority)
    # Small models on the right kind of task say more than a large one on another.
    if n_examples >= FEW and measured_here and task_kind not in PUBLISHED_KINDS:
        gaps.append(
            "larger models: no source compares methods on "
            + task_kind.replace("_", " ")
            + ", so this rests on studies "
            f"with small ones ({small(_cited(measured_here))})."
        )
        return measured_here
    published = _published(n_examples, task_kind, priority, gaps, have_own)
    if not measured_here or n_examples < FEW:
        return published
    by_method = {one.method: one for one in measured_here}
    merged = [_with_study(one, by_method.get(one.method)) for one in published]
    there = {one.method for one in published}
    rest = [one for one in measured_here if one.method not in there]
    best = [one.method for one in measured_here if one.recommended]
    advised = {one.method for one in published if one.recommended}
    if best and not advised & set(best):
        gaps.append(
            f"whom to believe: in studies with small backbones ({small(_cited(measured_here))}) {numbers.listed(best[:3])} did "
            "best, which the published tables of a large model do not say."
        )
    also = "worth trying too: no published comparison has it"
    worth = [replace(one, recommended=False, reasons=(*one.reasons, also)) if one.recommended else one for one in rest]
    return merged + worth


def _with_study(one: Recommendation, measured: Recommendation | None) -> Recommendation:
    """A published recommendation with what a study measured of the same method."""
    if measured is None:
        return one
    said = tuple(f"in a study with a small backbone: {text}" for text in measured.reasons)
    return replace(one, reasons=(*one.reasons, *said), citations=(*one.citations, *measured.citations))


def _cited(recommendations: list[Recommendation]) -> list[RecordedStudy]:
    """The studies that recommendations rest on."""
    named = {citation for one in recommendations for citation in one.citations}
    return [study for study in studies().values() if study.citation in named]


def _published(
    n_examples: int, task_kind: str, priority: Priority, gaps: list[str], have_own: bool
) -> list[Recommendation]:
    ranking: list[Recommendation] = []
    if n_examples < FEW:
        ranking += _prompting(n_examples)
        if n_examples == 0:
            gaps.append("without examples nothing can be tuned or measured; even 50 of them would show what works.")
            return ranking
    if task_kind not in PUBLISHED_KINDS:
        gaps.append(
            f"no source compares methods on {task_kind.replace('_', ' ')}; the order below is that of text "
            "classification and generation, and should be tested in a study of your own."
        )
    scale = framework.scale_of(n_examples)
    if not have_own:
        gaps.append(
            "whether this holds for your model: the published comparison is one model (FLAN-T5-XL), one seed and one "
            "setting per method, where differences below about a point are within noise."
        )
    # Five times beyond the scales: trends over data are smooth enough to be carried on a little.
    if n_examples < 50 or n_examples > 50_000:
        gaps.append(f"{n_examples:,} examples lie outside the published scales (100 to 10,000).")
    ranking += _serving(scale) if priority == "serving" else _from_framework(scale, task_kind, priority, gaps)
    return ranking


def _prompting(n_examples: int) -> list[Recommendation]:
    claim = next(claim for claim in claims() if claim.key == "icl_for_few")
    untuned, examples = reference("untuned").name, reference("examples").name
    methods = (untuned,) if n_examples == 0 else (examples, untuned)
    return [
        Recommendation(method, True, "statement", (claim.statement, "costs no training"), (claim.citation,))
        for method in methods
    ]


def _from_framework(
    scale: framework.Scale, task_kind: str, priority: Priority, gaps: list[str]
) -> list[Recommendation]:
    answer = framework.QUESTIONS[priority](scale)
    if answer.extrapolated:
        gaps.append("time to converge at high scale, which no table has: the trend from low to medium was carried on.")
    if task_kind in PUBLISHED_KINDS:
        alone = framework.QUESTIONS[priority](scale, task_kind)
        if set(alone.methods) != set(answer.methods):
            gaps.append(
                f"which is right for {task_kind}: its two data sets alone say {', '.join(alone.methods)}, "
                f"all four together {', '.join(answer.methods)}."
            )
    order = [one for method in answer.methods for one in answer.ranking if one.method == method]
    order += [one for one in answer.ranking if one.method not in answer.methods]
    cited = f"reference 001, Table {answer.table[-1]}"
    ranking = []
    for one in order:
        use = one.method in answer.methods
        standing = (
            f"mean rank {numbers.score(one.mean_rank, 2)} of {len(answer.ranking)}, first on {one.wins} of 4 data sets"
        )
        reasons = (answer.reason, standing) if use else (standing,)
        ranking.append(_with_claims(one.method, use, reasons, (cited,), priority))
    return ranking


def _serving(scale: framework.Scale) -> list[Recommendation]:
    """Smallest adapter first, among methods whose mean score is within 3 % of the best (Tables 1 and 3)."""
    size = {
        row.method: int(row.value) for row in findings(table="001.table3") if row.setting.get("ablation") == "all"
    }  # fmt: skip
    ranked = {one.method: one for one in framework.performance(scale).ranking}
    best = max(one.mean_score for one in ranked.values())
    # Within 3 % of the best counts as equal: published reruns of one setting differ by about as much.
    order = sorted(ranked, key=lambda method: (ranked[method].mean_score < 0.97 * best, size[method]))
    ranking = []
    for method in order:
        good = ranked[method].mean_score >= 0.97 * best
        reasons = (
            f"{size[method]:,} parameters per task for FLAN-T5-XL",
            f"mean score {numbers.score(ranked[method].mean_score)} at {scale} scale, the best has {numbers.score(best)}",
        )
        use = good and method != framework.FULL
        ranking.append(_with_claims(method, use, reasons, ("reference 001, Tables 1 and 3",), "serving"))
    return ranking


def _with_claims(
    method: str, use: bool, reasons: Sequence[str], citations: Sequence[str], about: str
) -> Recommendation:
    said = [claim for claim in claims() if claim.about == about and method in claim.methods]
    return Recommendation(
        method,
        use,
        "published",
        (*reasons, *(claim.statement.rstrip(".") for claim in said)),
        (*citations, *(claim.citation for claim in said)),
    )


# -- what fits, and words --------------------------------------------------------------------------------------------


def _fitting(
    ranking: list[Recommendation], limit: int | None, parameters: int | None, gaps: list[str]
) -> list[Recommendation]:
    if limit is None:
        return ranking
    if parameters is None:
        gaps.append("what fits into the memory: say how large the backbone is, or run `dollartune plan`.")
        return ranking
    gaps.append("activations, which depend on batch and length: `dollartune plan` predicts the whole peak.")
    kept = []
    for one in ranking:
        need = parameters * (_ADAM_BYTES if one.method == framework.FULL else _FROZEN_BYTES)
        if need <= limit:
            kept.append(one)
            continue
        reason = f"needs about {need / 2**30:.1f} GiB before activations, there are {limit / 2**30:.1f}"
        if one.method != framework.FULL and parameters * _NF4_BYTES <= limit:
            reason += "; fits with `quantize: nf4`"
            kept.append(Recommendation(one.method, one.recommended, one.basis, (*one.reasons, reason), one.citations))
        else:
            kept.append(Recommendation(one.method, False, one.basis, (reason, *one.reasons), one.citations))
    if not any(one.recommended for one in kept):
        for index, one in enumerate(kept):  # everything advised was too large: what fits moves up, in its order
            if parameters * (_ADAM_BYTES if one.method == framework.FULL else _NF4_BYTES) <= limit:
                reason = "the first in the order that fits"
                kept[index] = Recommendation(one.method, True, one.basis, (reason, *one.reasons), one.citations)
                break
    return kept


def _question(
    n_examples: int, task_kind: str, priority: Priority, machine: str | None, budget: str | BudgetSettings | None
) -> str:
    text = f"{n_examples:,} examples, {task_kind.replace('_', ' ')}; what matters most: {_ASKED[priority]}"
    if machine:
        text += f"; on {machine}"
    if budget is not None:
        limited = parse_budget(budget) if isinstance(budget, str) else budget
        text += f"; for {limited}"
        if machine and limited.dollars is not None:
            seconds = limited.limit(trials=1).in_seconds(find_machine(machine).dollars_per_hour)
            text += f" ({numbers.seconds(seconds)} there)"
    return text + "."


def _rests_on(from_study: list[Recommendation], evidence: list[Recommendation], priority: Priority) -> str:
    if from_study:
        return (
            f"your own study, for {len(from_study)} methods; published results only for methods that it does not have."
        )
    tables = any(one.basis == "published" for one in evidence)
    cited = [f"{study.key} ({study.backbone})" for study in _cited(evidence)]
    here = f"studies that were run with DollarTune: {', '.join(cited)}" if cited else ""
    if not tables:
        return f"{here}." if here else "what reference 001 says about very few examples; no measurement."
    if priority == "serving":
        said = "scores and sizes of reference 001 (FLAN-T5-XL, four data sets), and statements of reference 004"
    else:
        said = "the tables of reference 001 (FLAN-T5-XL, four data sets, one seed), by the rules of its own framework"
    return f"{said}; beside them {here}." if here else f"{said}."
