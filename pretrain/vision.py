"""Pretrains the small ViT: drawn letters in many distortions, and the digits 0 to 5 of the demo's train block.

The letters are drawn with the font that comes inside Pillow (Aileron, CC0), made as coarse as the digits' scans
(8 x 8 pixels), turned, sheared, thickened and blurred. The task is to name the character, of 26 letters and 6 digits.
"""

from __future__ import annotations

import json
import string
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessorPil

from dollartune.tasks.digits import IMAGE_SIZE, PRETRAINED_CLASSES, digit_arrays, digit_image

LETTERS = string.ascii_uppercase


def letter_bank(draw: np.random.Generator, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Draws letters; returns (count, 32, 32) uint8 and class numbers (count,)."""
    from PIL import Image, ImageDraw, ImageFilter, ImageFont

    fonts = {size: ImageFont.load_default(size) for size in range(22, 40, 3)}
    images = np.zeros((count, IMAGE_SIZE, IMAGE_SIZE), dtype=np.uint8)
    labels = draw.integers(0, len(LETTERS), count)
    for index, label in enumerate(labels):
        canvas = Image.new("L", (64, 64))
        pen = ImageDraw.Draw(canvas)
        size = int(draw.choice(list(fonts)))
        place = (32 + int(draw.integers(-4, 5)), 32 + int(draw.integers(-4, 5)))
        pen.text(place, LETTERS[label], fill=255, font=fonts[size], anchor="mm", stroke_width=int(draw.integers(0, 3)))
        shear, stretch = draw.normal(0, 0.15), draw.normal(1, 0.12)
        canvas = canvas.rotate(float(draw.normal(0, 12)), Image.Resampling.BILINEAR)
        matrix = (stretch, shear, 32 - 32 * stretch - 32 * shear, 0.0, 1.0, 0.0)
        canvas = canvas.transform((64, 64), Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR)
        if draw.random() < 0.7:  # as the scans are: cut to the ink, then 8 x 8 pixels
            margin = draw.integers(-2, 3, 4)
            left, top, right, bottom = (int(a + b) for a, b in zip(canvas.getbbox(), margin, strict=True))
            canvas = canvas.crop((left, top, max(right, left + 4), max(bottom, top + 4)))
            canvas = canvas.resize((8, 8), Image.Resampling.BOX)
        elif draw.random() < 0.5:
            canvas = canvas.crop((12, 12, 52, 52)).filter(ImageFilter.GaussianBlur(1))
        else:
            canvas = canvas.crop((12, 12, 52, 52))
        images[index] = np.asarray(canvas.resize((IMAGE_SIZE, IMAGE_SIZE), Image.Resampling.BILINEAR))
    return images, labels


def digit_bank() -> tuple[np.ndarray, np.ndarray]:
    """The train block's digits of the pretrained classes: (rows, 32, 32) uint8 and class numbers after the letters'."""
    images, targets = digit_arrays("train")
    chosen = [index for index, target in enumerate(targets) if target in PRETRAINED_CLASSES]
    pixels = np.stack([np.asarray(digit_image(images[index]).convert("L")) for index in chosen])
    return pixels, np.array([len(LETTERS) + PRETRAINED_CLASSES.index(int(targets[index])) for index in chosen])


def distorted(images: Tensor) -> Tensor:
    """Random small turns, scales, shifts, contrast and noise; images (rows, 1, 32, 32) in 0 to 1."""
    rows = len(images)
    angle, scale = torch.randn(rows) * 0.15, 1 + torch.randn(rows) * 0.08
    turn = torch.stack([angle.cos() * scale, -angle.sin(), angle.sin(), angle.cos() * scale], 1).view(rows, 2, 2)
    grid_map = torch.cat([turn, (torch.randn(rows, 2) * 0.08)[:, :, None]], 2)
    grid = nn.functional.affine_grid(grid_map, list(images.shape), align_corners=False)
    moved = nn.functional.grid_sample(images, grid, align_corners=False)
    contrast = 1 + torch.randn(rows, 1, 1, 1) * 0.15
    return (moved * contrast + torch.randn_like(moved) * 0.04).clamp(0, 1)


def new_vision_model() -> ViTForImageClassification:
    """The ViT's shape with random weights and a head for all characters."""
    return ViTForImageClassification(
        ViTConfig(
            image_size=IMAGE_SIZE, patch_size=8, num_channels=3, hidden_size=128, num_hidden_layers=6,
            num_attention_heads=4, intermediate_size=512, num_labels=len(LETTERS) + len(PRETRAINED_CLASSES),
        )
    )  # fmt: skip


def train_vision(settings: dict[str, Any], work: Path, export: Path, threads: int) -> None:
    """Trains for the given minutes and writes `tiny-vit`; short enough to start over after a kill."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    letters, letter_labels = letter_bank(np.random.default_rng(0), 30_000)
    check, check_labels = letter_bank(np.random.default_rng(1), 1_000)
    digits, digit_labels = digit_bank()
    model = new_vision_model()
    hidden = {key: value.ndim == 2 and "classifier" not in key for key, value in model.named_parameters()}
    matrices = [value for key, value in model.named_parameters() if hidden[key]]
    others = [value for key, value in model.named_parameters() if not hidden[key]]
    optimizers: list[torch.optim.Optimizer] = [
        torch.optim.Muon(matrices, lr=1.0, weight_decay=settings["weight_decay"], adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, lr=1.0, weight_decay=0.0, betas=(0.9, 0.98)),
    ]
    log: list[dict[str, float]] = []
    digit_rows = int(settings["batch"] * settings["digit_share"])
    draw = np.random.default_rng(2)
    begin, step = time.monotonic(), 0
    while (progress := (time.monotonic() - begin) / (60 * settings["minutes"])) < 1:
        some = draw.integers(0, len(letters), settings["batch"] - digit_rows)
        other = draw.integers(0, len(digits), digit_rows)
        pixels = torch.from_numpy(np.concatenate([letters[some], digits[other]])).float()[:, None] / 255
        labels = torch.from_numpy(np.concatenate([letter_labels[some], digit_labels[other]]))
        factor = min(1.0, (step + 1) / 50, max(0.0, 1.6 * (1 - progress)))
        for optimizer, rate in zip(
            optimizers, (settings["learning_rate"], settings["adam_learning_rate"]), strict=True
        ):
            for group in optimizer.param_groups:
                group["lr"] = rate * factor
        with torch.autocast("cpu", torch.bfloat16):
            logits = model(pixel_values=normalized(distorted(pixels))).logits
        loss = nn.functional.cross_entropy(logits.float(), labels)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        step += 1
        if step % 50 == 0:
            with torch.no_grad():
                logits = model(pixel_values=normalized(torch.from_numpy(check).float()[:, None] / 255)).logits
            accuracy = float((logits.argmax(-1) == torch.from_numpy(check_labels)).float().mean())
            log.append(
                {"step": step, "images": step * settings["batch"], "seconds": round(time.monotonic() - begin, 1),
                 "train_loss": round(float(loss.detach()), 4), "letter_accuracy": accuracy}
            )  # fmt: skip
            print(json.dumps(log[-1]), flush=True)
    folder = export / "tiny-vit"
    folder.mkdir(parents=True, exist_ok=True)
    model.vit.to(torch.bfloat16).save_pretrained(folder)
    ViTImageProcessorPil(size={"height": IMAGE_SIZE, "width": IMAGE_SIZE}).save_pretrained(folder)
    (work / "tiny-vit.log.json").write_text(json.dumps(log))


def normalized(images: Tensor) -> Tensor:
    """Three channels in -1 to 1, as the image processor makes them; images (rows, 1, 32, 32) in 0 to 1."""
    return ((images - 0.5) / 0.5).expand(-1, 3, -1, -1)
