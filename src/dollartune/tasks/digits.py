"""scikit-learn's handwritten digits as an image task, for a machine without a network.

The 1,797 scans of 8 x 8 pixels come inside scikit-learn (UCI "Optical recognition of handwritten digits", CC BY 4.0).
They lie in the order in which writers filled their forms, so the splits are consecutive blocks: the test digits are,
but for one writer at the border, in hands that training never saw.

The embedded `tiny-vit` was pretrained on drawn letters and on the training block's digits 0 to 5 (`PRETRAINED_CLASSES`)
and has never seen a 6, 7, 8 or 9, so adapting it to all ten has something to do.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from dollartune.tasks.base import Example, SplitName, Task

BLOCKS: dict[SplitName, tuple[int, int]] = {"train": (0, 1200), "validation": (1200, 1500), "test": (1500, 1797)}
"""Rows of each split, first and one past the last."""

# tiny-vit was pretrained on these digits alone: the demo's other task asks for those it has never seen.
PRETRAINED_CLASSES = (0, 1, 2, 3, 4, 5)
"""Digits of the train block that the embedded vision backbone saw in pretraining."""

# Four times the scans' 8 pixels, so that enlarging is exact; the patches of tiny-vit divide it.
IMAGE_SIZE = 32


def digit_arrays(split: SplitName) -> tuple[Any, Any]:
    """Returns the images of a split, (rows, 8, 8) float in 0 to 16, and their labels, (rows,) int."""
    from sklearn.datasets import load_digits

    data = load_digits()
    begin, end = BLOCKS[split]
    return data.images[begin:end], data.target[begin:end]


def digit_image(pixels: Any) -> Any:
    """One scan as an RGB `PIL.Image` of 32 x 32 pixels, white ink on black.

    Args:
        pixels: (8, 8), 0 to 16.
    """
    import numpy as np
    from PIL import Image

    # From 0 to 16 to the 0 to 255 of a picture.
    small = Image.fromarray(np.clip(np.asarray(pixels) * 255 / 16, 0, 255).astype(np.uint8))
    return small.resize((IMAGE_SIZE, IMAGE_SIZE), Image.Resampling.BILINEAR).convert("RGB")


def _rows(labels: Sequence[int]) -> Mapping[SplitName, Sequence[Example]]:
    result: dict[SplitName, Sequence[Example]] = {}
    for split in BLOCKS:
        images, targets = digit_arrays(split)
        result[split] = [
            Example(f"{split}/{index}", {"image": digit_image(image)}, label=str(target))
            for index, (image, target) in enumerate(zip(images, targets, strict=True))
            if target in labels
        ]
    return result


def _task(name: str, labels: Sequence[int], description: str) -> Task:
    return Task(
        name=name,
        kind="classification",
        load=lambda: _rows(labels),
        label_words={str(label): str(label) for label in labels},
        metric="accuracy",
        metrics=("balanced_accuracy", "f1"),
        modality="image",
        description=description,
        source="Optical Recognition of Handwritten Digits (E. Alpaydin, C. Kaynak; UCI), CC BY 4.0, in scikit-learn.",
    )


def demo_digits() -> Task:
    """Which of ten digits is this scan?"""
    return _task("demo_digits", range(10), "Handwritten digits 0 to 9; 6 to 9 are new to the embedded backbone.")


def demo_digits_new() -> Task:
    """Which of the four digits that the embedded backbone has never seen is this scan?"""
    return _task("demo_digits_new", (6, 7, 8, 9), "Handwritten digits 6 to 9, none seen in pretraining.")


TASKS: dict[str, Callable[[], Task]] = {"demo_digits": demo_digits, "demo_digits_new": demo_digits_new}
"""What this module adds to the task registry."""
