"""RTE: does a premise entail a hypothesis?"""

from __future__ import annotations

from dollartune.tasks.hub import HubSource
from dollartune.tasks.preset import Preset

PRESET = Preset(
    name="rte",
    kind="classification",
    description="Whether a premise entails a hypothesis.",
    columns=("premise", "hypothesis"),
    prompt='{premise}\n\nQuestion: does this imply that "{hypothesis}"? Yes or no?\nAnswer:',
    extra_prompts=(
        "Premise: {premise}\nHypothesis: {hypothesis}\nDoes the premise entail the hypothesis? Answer:",
        "Suppose it is true that: {premise}\nIs it then certain that: {hypothesis}\nAnswer:",
        '{premise}\nBased on that alone, "{hypothesis}" must be true:',
    ),
    label_words={"not_entailment": "no", "entailment": "yes"},
    metric="accuracy",
    metrics=("balanced_accuracy", "f1", "matthews"),
    group="premise",
    hub=HubSource(
        "nyu-mll/glue",
        "rte",
        splits={"train": "train", "test": "validation"},
        columns={"premise": "sentence1", "hypothesis": "sentence2"},
    ),
    citation=(
        "Recognising Textual Entailment challenges 1, 2, 3 and 5; GLUE and SuperGLUE task RTE (Wang et al., 2019)."
    ),
    licence="no single licence; available for research use according to the SuperGLUE authors",
    leaks=(
        "Test is the official development split (277 rows: one row is 0.36 points, so read the interval). On the "
        "hub a few premises of training occur in it; the local copy has no premise in two splits."
    ),
)
