"""MultiNLI: entailment, neutral or contradiction between two sentences of ten genres."""

from __future__ import annotations

from dollartune.tasks.hub import HubSource
from dollartune.tasks.preset import Preset

PRESET = Preset(
    name="mnli",
    kind="classification",
    description="Whether a hypothesis follows from a premise, contradicts it, or neither.",
    columns=("premise", "hypothesis"),
    prompt='{premise}\n\nQuestion: does this imply that "{hypothesis}"? Yes, no, or maybe?\nAnswer:',
    extra_prompts=(
        "Premise: {premise}\nHypothesis: {hypothesis}\nDoes the hypothesis follow (yes, no, maybe)? Answer:",
        'Suppose it is true that: {premise}\nThen, is "{hypothesis}" true? Yes, no, or maybe?\nAnswer:',
        "{premise}\nBased on that, is it the case that {hypothesis}\nYes, maybe or no:",
    ),
    label_words={"entailment": "yes", "neutral": "maybe", "contradiction": "no"},
    metric="accuracy",
    metrics=("balanced_accuracy", "f1", "matthews"),
    folders=("mnli_small",),
    aliases=("mnli_small",),
    group="premise",
    hub=HubSource("nyu-mll/glue", "mnli", splits={"train": "train", "test": "validation_matched"}),
    citation="Williams, Nangia and Bowman (2018), A Broad-Coverage Challenge Corpus for Sentence Understanding.",
    licence="mostly the OANC licence; some fiction CC BY-SA 3.0, CC BY 3.0 or public domain",
    leaks=(
        "The hypothesis alone gives much away (about 50 to 60 % without the premise). The local copy has 1,024 "
        "training rows only; its validation and test come from the matched development split and share 16 premises."
    ),
)
