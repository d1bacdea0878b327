"""NIH chest X-rays of adults: no finding or pneumonia, a small balanced choice."""

from __future__ import annotations

from dollartune.tasks.preset import Preset

PRESET = Preset(
    name="chest_xray_nih",
    kind="classification",
    description="Chest X-ray of an adult: no finding or pneumonia.",
    modality="image",
    columns=("image",),
    label_words={"no_finding": "no finding", "pneumonia": "pneumonia"},
    metric="accuracy",
    metrics=("balanced_accuracy", "auc", "f1", "matthews"),
    group="patient",
    citation="Wang et al. (2017), ChestX-ray8; the choice of images: Ozturk et al. (2020).",
    licence="free use if the NIH Clinical Center and Wang et al. are credited",
    leaks=(
        "The split is by patient. Labels were mined from reports by software, so some are wrong. 201 test images: "
        "one is half a point of accuracy. Not for clinical use."
    ),
)
