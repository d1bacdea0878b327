"""CoLA: is a sentence grammatically acceptable? (reference 001)."""

from __future__ import annotations

from dollartune.tasks.hub import HubSource
from dollartune.tasks.preset import Preset

PRESET = Preset(
    name="cola",
    kind="classification",
    description="Whether an English sentence is grammatically acceptable.",
    columns=("text",),
    prompt="Is the following sentence grammatically acceptable? Answer yes or no.\n\nSentence: {text}\n\nAnswer:",
    extra_prompts=(
        "{text}\nDoes this sentence make sense and use correct English? Please answer yes or no.\nAnswer:",
        "Sentence: {text}\nIs it good English? Answer:",
        'A linguist was asked whether one can say "{text}" The linguist said',
    ),
    label_words={"unacceptable": "no", "acceptable": "yes"},
    metric="accuracy",
    metrics=("matthews", "balanced_accuracy", "f1"),
    hub=HubSource(
        "nyu-mll/glue", "cola", splits={"train": "train", "test": "validation"}, columns={"text": "sentence"}
    ),
    citation="Warstadt, Singh and Bowman (2019), Neural Network Acceptability Judgments; GLUE task CoLA.",
    licence="none; excerpts of published works, expected by the authors to be fair use for research in the US",
    leaks=(
        "About 70 % of the sentences are acceptable: read the Matthews correlation beside accuracy. Reference 001 "
        "reports accuracy, which is why it comes first here. Test is the GLUE development split (official test "
        "labels are withheld). Near-identical pairs that differ in one word can lie in different splits."
    ),
)
