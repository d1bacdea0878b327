"""PneumoniaMNIST: chest X-rays of children, normal or pneumonia (reference 003 used the full-size originals)."""

from __future__ import annotations

from dollartune.tasks.hub import HubSource
from dollartune.tasks.preset import Preset

PRESET = Preset(
    name="pneumonia",
    kind="classification",
    description="Chest X-ray of a child: normal or pneumonia.",
    modality="image",
    columns=("image",),
    label_words={"normal": "normal", "pneumonia": "pneumonia"},
    metric="accuracy",
    metrics=("balanced_accuracy", "auc", "f1", "matthews"),
    folders=("pneumonia_mnist",),
    aliases=("pneumonia_mnist",),
    hub=HubSource("hf-vision/chest-xray-pneumonia", splits={"train": "train", "test": "test"}),
    citation="Kermany et al. (2018); 28 x 28 version: Yang et al. (2023), MedMNIST v2.",
    licence="CC BY 4.0",
    leaks=(
        "Test has more normal images (38 %) than training (26 %) and is clearly harder than validation: report "
        "balanced accuracy and the area under the curve. One patient may be in both training and validation: there "
        "are no patient numbers. The hub has the originals, its 16 official validation images are replaced by a cut "
        "from training; the local copy is 28 x 28, so figures of the two do not compare. Not for clinical use."
    ),
)
