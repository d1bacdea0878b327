"""`--shrink`: the same study in minutes on a processor, with the embedded backbones and less of everything.

    backbones    -> the embedded one of each kind              rows        n -> 6 cube root of n, at most 130
    methods      -> the same, with learning rates that small   tokens      virtual tokens: a quarter
                    backbones need                             training    at most 3 epochs, batches of 8, 80 tokens
    budget       -> 5 minutes per trial                       evaluation  48 test rows, 16 for early stopping

What is compared with what stays: every method, setting, task, scale, ablation and seed has its smaller counterpart, in the
same order. The figures are of other models, and are to be read as such.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from dollartune.budget.limit import BudgetSettings
from dollartune.config import BackboneSettings, SourceSettings, StudySettings, UncutSettings
from dollartune.methods.registry import method_class
from dollartune.methods.spelling import parse_call

EMBEDDED = {
    "decoder": "tiny-decoder",
    "encoder_decoder": "tiny-seq2seq",
    "encoder": "tiny-encoder",
    "vision": "tiny-vit",
}
"""Kind of backbone -> the embedded backbone that stands for it."""

# 6 x cube root of 10,000 is 129: scales of 100, 1,000 and 10,000 rows become 28, 60 and 129, still three different scales.
MOST_ROWS = 130
EPOCHS = 3
BATCH_SIZE = 8
# A step's time grows with its longest row; longer prompts are cut as `training: {max_length: ...}` cuts them anywhere.
MAX_LENGTH = 80
# Enough to see that a method learns, too few to rank methods.
TEST_ROWS = 48
VALIDATION_ROWS = 16
ANSWER_TOKENS = 24
# Not meant to bind on two cores, where a trial takes seconds; it ends one that hangs on a slower machine.
SECONDS_PER_TRIAL = 300.0


def shrink(settings: StudySettings) -> StudySettings:
    """A study cut to minutes; shrinking twice changes nothing more.

    Raises:
        UserError: a backbone, method, task or scale that the study cannot have.
    """
    # The name is the only mark that is left in a shrunk study's file.
    if settings.name is not None and settings.name.endswith("-small"):
        return settings
    scales = _distinct([_rows(rows) for rows in settings.scales])
    training = settings.training.model_copy(
        update={
            "epochs": min(stated, EPOCHS) if isinstance(stated := settings.training.epochs, int) else EPOCHS,
            "batch_size": BATCH_SIZE,
            "micro_batch_size": None,
            "max_length": MAX_LENGTH,
            "validation_rows": VALIDATION_ROWS,
            "validations_per_epoch": 2,
            # Three short epochs are run to their end: with 16 validation rows early stopping would stop by noise.
            "patience": None,
        }
    )
    evaluation = settings.evaluation.model_copy(
        # Figures of other models say nothing of either.
        update={"rows": TEST_ROWS, **dict.fromkeys(("forgetting", "inference_cost"), False)}
    )
    uncut = UncutSettings(
        backbones=[backbone.name for backbone in settings.backbones],
        scales=settings.scales,
        methods=list(settings.methods),
    )
    return settings.model_copy(
        update={
            "name": f"{settings.name or 'study'}-small",
            "backbones": _backbones(settings),
            "tasks": tuple(_task(spec) for spec in settings.tasks),
            "methods": [_method(entry) for entry in settings.methods],
            "scales": scales,
            "budget": BudgetSettings(seconds=SECONDS_PER_TRIAL, per="trial"),
            "training": training,
            "evaluation": evaluation,
            "keep_adapters": "none",
            "source": settings.source
            and SourceSettings(tables=settings.source.tables, uncut=settings.source.uncut or uncut),
        }
    )


def _rows(rows: int | None) -> int:
    # The cube root shrinks large scales most and keeps their order.
    return MOST_ROWS if rows is None else min(rows, MOST_ROWS, round(6 * rows ** (1 / 3)))


def _distinct(rows: Sequence[int]) -> tuple[int, ...]:
    """Large scales shrink to the same number; the later ones get a row more each, so that every scale keeps its counterpart."""
    chosen: list[int] = []
    for count in rows:
        while count in chosen:
            count += 1
        chosen.append(count)
    return tuple(chosen)


def _backbones(settings: StudySettings) -> tuple[BackboneSettings, ...]:
    """One embedded backbone of each kind that the study has."""
    from dollartune.backbones.kind import kind_of
    from dollartune.backbones.loading import read_shape

    kinds = [kind_of(read_shape(one.name, one.trust_remote_code)) for one in settings.backbones]
    return tuple(BackboneSettings(name=EMBEDDED[kind]) for kind in dict.fromkeys(kinds))


def _task(spec: str | Mapping[str, object]) -> str | dict[str, object]:
    """A preset that asks for text asks for less of it; other tasks stay as they are."""
    from dollartune.tasks.registry import presets

    name = spec if isinstance(spec, str) else str(spec.get("preset"))
    preset = presets().get(name)
    if preset is None or preset.kind != "generation":
        return spec if isinstance(spec, str) else dict(spec)
    changes = {} if isinstance(spec, str) else dict(spec)
    return {"preset": name, **changes, "max_answer_tokens": min(preset.max_answer_tokens, ANSWER_TOKENS)}


def _method(entry: Any) -> Any:
    """A method entry with a small backbone's learning rate and a quarter of the virtual tokens; grids keep their length."""
    if isinstance(entry, list):
        return [_method(part) for part in entry]
    name, given = parse_call(entry) if isinstance(entry, str) else next(iter(entry.items()))
    changed = dict(given or {})
    rate = method_class(str(name)).small_lr
    if rate is not None:
        changed["lr"] = rate
    if "tokens" in changed:
        changed["tokens"] = _quarter(changed["tokens"])
    return {str(name): changed}


def _quarter(tokens: int | Sequence[int]) -> int | list[int]:
    # A quarter: prompts are cut to 80 tokens, of which 20 virtual ones would be a fourth.
    return max(1, round(tokens / 4)) if isinstance(tokens, int) else [max(1, round(one / 4)) for one in tokens]
