"""Shared fixtures: small local backbones, a small data set, and the real data and models, if they are there."""

from __future__ import annotations

import csv
import gc
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Containers often tell Python to keep no bytecode: each of the suite's processes would compile the package again, for seconds.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False
# Tests of two threads run beside another process of tests, whose core threads that wait by turning round would take.
os.environ.setdefault("GOMP_SPINCOUNT", "0")

MEMORY_DISK = Path("/dev/shm")
"""A file system in memory (Linux): what is written durably waits for no disk there, which was a fourth of the time of tests that
run pretended studies."""
if os.access(MEMORY_DISK, os.W_OK) and shutil.disk_usage(MEMORY_DISK).free > 4 * 2**30:
    os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", str(MEMORY_DISK))  # of all `tmp_path`

SHARED = Path(os.environ.get("DOLLARTUNE_SHARED", Path(__file__).resolve().parents[2] / "shared"))


def pytest_configure(config: pytest.Config) -> None:
    """Tests count the trials that their studies list; those of baselines ask for them (`baselines: true`). That baselines are
    the default is tested in a process of its own (tests/engines/test_baselines.py)."""
    from dollartune.config import StudySettings

    StudySettings.model_fields["baselines"].default = False
    StudySettings.model_rebuild(force=True)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Long tests first, so that all processes of a parallel run end at about the same time."""
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)


def pytest_collection_finish(session: pytest.Session) -> None:
    """What the libraries made while they were imported is looked through by no collection of garbage any more, and what tests
    make by fewer: a tenth of the suite's time."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)


MODULES: dict[str, list[Any]] = {}
"""Modules of each tiny backbone, listed once: this is looked at after each of ten thousand tests."""


@pytest.fixture(autouse=True)
def shared_models_are_left_bare() -> Iterator[None]:
    """Fails the test that leaves an adapter on a tiny backbone, instead of whichever comes after it in the same process."""
    yield
    tiny = sys.modules.get("dollartune.testing.tiny")
    for name, built in [] if tiny is None else tiny.BUILT.items():
        if name not in MODULES:
            MODULES[name] = list(built.model.modules())
        hooked = [module for module in MODULES[name] if module._forward_hooks or module._forward_pre_hooks]
        for module in hooked:
            module._forward_hooks.clear()
            module._forward_pre_hooks.clear()
        assert not hooked, f"something is still attached to the tiny {name}"


LOOKS: dict[str, list[Any]] = {}
"""What each tiny backbone is made of when it is new."""


@pytest.fixture(autouse=True, scope="module")
def shared_models_stay_what_they_are() -> Iterator[None]:
    """Fails where a file of tests has changed a tiny backbone (another module in a place, another number format), instead of in
    the files after it. Whoever wants to change one replaces `tiny.BUILT` for so long."""
    yield
    tiny = sys.modules.get("dollartune.testing.tiny")
    for name, built in [] if tiny is None else list(tiny.BUILT.items()):
        if name not in LOOKS:
            LOOKS[name] = _look(tiny._new_backbone(name).model)
        if (look := _look(built.model)) != LOOKS[name]:
            del tiny.BUILT[name]
            MODULES.pop(name, None)
            differing = [now for now, new in zip(look, LOOKS[name], strict=False) if now != new]
            raise AssertionError(f"the tiny {name} was changed: {differing[:3]}")


def _look(model: Any) -> list[Any]:
    """Each module's kind, and the number formats of its own tensors."""
    return [
        (name, type(module), [one.dtype for one in module.parameters(recurse=False)])
        for name, module in model.named_modules()
    ]


BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Chromium without a window; the test is skipped where there is none."""
    sync_api = pytest.importorskip("playwright.sync_api")
    path = next((found for name in BROWSERS if (found := shutil.which(name))), None)
    if path is None:
        pytest.skip("no Chromium on this machine (apt-get install chromium)")
    with sync_api.sync_playwright() as playwright:
        made = playwright.chromium.launch(executable_path=path, args=["--no-sandbox", "--disable-gpu"])
        yield made
        made.close()


@pytest.fixture(scope="session")
def shared() -> Path:
    """Folder with real data sets (`data/`) and small real checkpoints (`models/`); the test is skipped without it."""
    if not (SHARED / "data").is_dir():
        pytest.skip(f"real data is not there: {SHARED} (set DOLLARTUNE_SHARED to its folder)")
    return SHARED


@pytest.fixture
def one_thread() -> Iterator[None]:
    """A processor with one core: a cohort has no lanes there, whatever the machine."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def local_backbone(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """family -> directory of a random backbone, 32 wide, with the tokenizer of the embedded decoder."""
    root = tmp_path_factory.mktemp("backbones")
    made: dict[str, Path] = {}

    def make(family: str) -> Path:
        if family not in made:
            made[family] = _save_backbone(family, root / family)
        return made[family]

    return make


def _save_backbone(family: str, folder: Path) -> Path:
    import torch
    import transformers

    from dollartune.backbones.embedded import embedded_path
    from dollartune.testing.tiny import FAMILIES, _auto_class

    tokenizer = transformers.AutoTokenizer.from_pretrained(embedded_path("tiny-decoder"))
    config = FAMILIES[family](
        transformers, vocab_size=len(tokenizer), num_labels=2, pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
    )  # fmt: skip
    for name in ("max_position_embeddings", "n_positions"):
        if getattr(config, name, None) and family != "t5":
            setattr(config, name, 128)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = _auto_class(family, "language").from_config(config)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def reviews(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A csv file of 80 short reviews whose label follows from one word: text, mood (good, bad)."""
    path = tmp_path_factory.mktemp("reviews") / "reviews.csv"
    things = ("the film", "my lunch", "this song", "a long walk", "the book", "our trip", "the game", "her speech")
    words = {"good": ("lovely", "bright", "fine", "sweet", "superb"), "bad": ("awful", "dull", "poor", "sour", "grim")}
    rows = [
        (f"{thing} was {word} today", mood)
        for thing in things
        for pair in zip(*words.values(), strict=True)
        for mood, word in zip(words, pair, strict=True)
    ]
    with path.open("w", encoding="utf8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("text", "mood"))
        writer.writerows(rows)
    return path


@pytest.fixture(scope="session")
def backbone(local_backbone: Any) -> Any:
    """The small LLaMA, loaded. Shared by tests: detach what you attach."""
    from dollartune.backbones.loading import load_backbone

    return load_backbone(str(local_backbone("llama")))


@pytest.fixture(scope="session")
def moods(reviews: Path) -> Any:
    """The reviews as a task."""
    from dollartune.tasks.registry import load_task

    return load_task({"data": str(reviews), "prompt": "{text}. Mood:", "label": "mood"})


@pytest.fixture
def study_of(local_backbone: Any, reviews: Path, tmp_path: Path) -> Any:
    """Settings of a study that takes a second or two; keyword arguments change them."""

    def settings(**changes: Any) -> dict[str, Any]:
        whole = {
            "name": "moods",
            "backbone": str(local_backbone("llama")),
            "task": {"data": str(reviews), "prompt": "{text}. Mood:", "label": "mood"},
            "methods": ["zero_shot", "bitfit"],
            "scales": [16],
            "seeds": 1,
            "training": {"epochs": 1, "batch_size": 8},
            "evaluation": {
                "rows": 8,
                "free_generation": False,
                "forgetting": False,
                "inference_cost": False,
            },  # tests of these say so
            "search": False,  # with a budget too; tests of searches say which
            "output": str(tmp_path / "studies"),
        }
        return {**whole, **changes}

    return settings
