"""The settings in which a study's variants differ: columns of tables beside the label, such as rank and layers."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dollartune.trials.record import TrialRecord


def varying_settings(records: Sequence[TrialRecord]) -> dict[str, dict[str, object]]:
    """Label -> setting -> value, for each setting that has two values or more among the variants of one method.

    A combination's settings carry the method's name before them, as in `lora.rank`. Where a method has no such setting, or one
    value only, its column is empty: `rank` says nothing of full tuning.
    """
    by_label = {record.trial.label: _settings(record.trial.methods) for record in records if not record.trial.baseline}
    groups = {record.trial.label: record.trial.group for record in records}
    varying: dict[str, None] = {}
    for group in dict.fromkeys(groups[label] for label in by_label):
        variants = [settings for label, settings in by_label.items() if groups[label] == group]
        for key in dict.fromkeys(key for settings in variants for key in settings):
            # By repr, as values may be lists, which have no hash.
            if len({repr(settings.get(key)) for settings in variants}) > 1:
                varying[key] = None
    return {label: {key: settings[key] for key in varying if key in settings} for label, settings in by_label.items()}


def shown_labels(records: Sequence[TrialRecord]) -> dict[str, str]:
    """A variant's label as stored -> as tables and charts write it: with every setting in which it differs from its sisters.

    A label names what differs from the method's defaults, so that rank 8 stands as `lora` beside `lora(rank=2)`. Shown, it is
    `lora(rank=8)`. Combinations stay as they are, and so does a study with ablations, whose labels refer to each other.
    """
    labels = {record.trial.label: record.trial for record in records}
    plain = {label: label for label in labels}
    if any(trial.ablation is not None for trial in labels.values()):
        return plain
    shown = dict(plain)
    for label, settings in varying_settings(records).items():
        whole = re.fullmatch(r"(\w+)(?:\((.*)\))?", label)
        missing = [f"{key}={_short(value)}" for key, value in settings.items() if f"{key}=" not in label]
        if whole is not None and missing and len(labels[label].methods) == 1:
            shown[label] = f"{whole[1]}({', '.join([*([whole[2]] if whole[2] else []), *missing])})"
    # Two variants under one name would be one row of a table.
    return shown if len(set(shown.values())) == len(shown) else plain


def _short(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _settings(methods: Sequence[Mapping[str, object]]) -> dict[str, object]:
    """Flat, without the names of the methods."""
    settings: dict[str, object] = {}
    for method in methods:
        prefix = f"{method['method']}." if len(methods) > 1 else ""
        settings |= {f"{prefix}{key}": value for key, value in method.items() if key != "method"}
    return settings
