"""Does a plan keep its word? Predicted against measured peak memory and seconds, over methods x shapes x batches x formats.

    make bench-planner                                    all 40 settings and the table
    python bench/planner.py [--settings 40] [--only opt]  fewer

Every setting runs in a process of its own, forked from one that has imported everything and computed nothing, so that its
memory begins fresh. Each prediction is made from the configuration alone (tensors without contents), with the machine's speed
and the heap's gaps fitted to calibration steps of the same backbone. Those have other shapes than what is predicted, run in
processes of their own, and are interleaved with the measured settings. One thread; seconds are those of the processor, so
that a busy machine disturbs little; the wall's are stored beside them.

memory   peak resident memory of the process during training, less what it had before the backbone was made
seconds  median optimizer step
"""

from __future__ import annotations

import argparse
import json
import os
import pickle
import platform
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
import transformers

from dollartune.backbones.loading import Backbone, Objective, anatomy_of
from dollartune.budget.calibration import prior_speed, timed_steps
from dollartune.budget.meters import PeakMemory, resident_bytes
from dollartune.budget.rehearsal import Bare, Shape, bare, rehearsing
from dollartune.budget.speed import fitted
from dollartune.budget.tracing import Work
from dollartune.methods.registry import build_method
from dollartune.train.settings import TrainingSettings

RESULTS = Path(__file__).parent / "results" / "planner.json"
CLOSE_MEMORY, CLOSE_SECONDS, WANTED = 0.10, 0.20, 0.90


@dataclass(frozen=True)
class Setting:
    """One row of the table."""

    model: str
    dtype: str
    method: str
    rows: int
    prompt: int
    answer: int

    @property
    def shape(self) -> Shape:
        return Shape(self.rows, self.prompt, self.answer)


def _settings() -> list[Setting]:
    """Forty settings on five backbones: methods, rows and lengths take turns."""
    grids: dict[tuple[str, str], list[tuple[str, int, int, int]]] = {
        ("opt", "bfloat16"): [
            ("lora", 8, 160, 2), ("full", 4, 96, 2), ("bitfit", 8, 96, 16), ("ia3", 16, 64, 2), ("prompt(tokens=20)", 8, 64, 2),
            ("prefix", 8, 128, 2), ("houlsby", 4, 192, 2), ("lora(rank=16, where='all_linear')", 8, 96, 2),
        ],
        ("llama", "float32"): [
            ("lora", 4, 128, 4), ("full", 4, 64, 4), ("bitfit", 4, 96, 4), ("ia3", 8, 64, 4), ("prompt(tokens=20)", 4, 96, 4),
            ("dora", 4, 64, 4), ("pfeiffer", 8, 48, 4), ("norm", 4, 128, 4),
        ],
        ("t5", "float32"): [
            ("lora", 8, 96, 16), ("full", 4, 64, 16), ("bitfit", 8, 64, 16), ("ia3", 4, 128, 8), ("prompt(tokens=20)", 4, 96, 8),
            ("houlsby", 8, 64, 8), ("lora(layers='last 50%')", 8, 96, 8), ("norm", 8, 64, 32),
        ],
        ("bert", "bfloat16"): [
            ("lora", 16, 96, 0), ("full", 8, 96, 0), ("bitfit", 16, 64, 0), ("ia3", 16, 128, 0), ("head", 16, 128, 0),
            ("prefix", 8, 128, 0), ("pfeiffer", 16, 64, 0), ("layer_freezing", 8, 128, 0),
        ],
        ("vit", "float32"): [
            ("lora", 4, 1, 0), ("full", 4, 1, 0), ("bitfit", 8, 1, 0), ("ia3", 4, 1, 0), ("prompt(tokens=20)", 4, 1, 0),
            ("houlsby", 4, 1, 0), ("lora(rank=16, where='all_linear')", 6, 1, 0), ("norm", 6, 1, 0),
        ],
    }  # fmt: skip
    columns = [[Setting(*key, *cell) for cell in cells] for key, cells in grids.items()]
    return [setting for row in zip(*columns, strict=True) for setting in row]


CALIBRATION = {
    "text": (("lora", 4, 112), ("full", 2, 80), ("ia3", 8, 48), ("houlsby", 4, 64)),
    "image": (("lora", 2, 1), ("full", 2, 1), ("ia3", 6, 1), ("houlsby", 3, 1)),
}
"""(method, rows, prompt) of the steps that the fit is made from."""


def config_of(name: str) -> tuple[Any, Any, Objective]:
    """Small shapes of real families, 10 to 30 million parameters, with the class that builds them."""
    words = {"vocab_size": 8000, "bos_token_id": 0, "pad_token_id": 1, "eos_token_id": 2}
    t: Any = transformers
    if name == "opt":
        config = t.OPTConfig(
            hidden_size=384, word_embed_proj_dim=384, num_hidden_layers=8, ffn_dim=1536, num_attention_heads=6,
            max_position_embeddings=512, **words,
        )  # fmt: skip
        return config, t.AutoModelForCausalLM, "language"
    if name == "llama":
        config = t.LlamaConfig(
            hidden_size=320, intermediate_size=896, num_hidden_layers=6, num_attention_heads=5, num_key_value_heads=5,
            max_position_embeddings=512, tie_word_embeddings=True, **words,
        )  # fmt: skip
        return config, t.AutoModelForCausalLM, "language"
    if name == "t5":
        config = t.T5Config(
            d_model=320, d_kv=64, d_ff=768, num_layers=4, num_heads=5, feed_forward_proj="gated-gelu",
            decoder_start_token_id=0, **words,
        )  # fmt: skip
        return config, t.AutoModelForSeq2SeqLM, "language"
    if name == "bert":
        config = t.BertConfig(
            hidden_size=384, num_hidden_layers=6, num_attention_heads=6, intermediate_size=1536, num_labels=4, **words
        )
        return config, t.AutoModelForSequenceClassification, "classification"
    config = t.ViTConfig(
        hidden_size=320, num_hidden_layers=6, num_attention_heads=5, intermediate_size=1280, image_size=160, patch_size=16,
        num_labels=4,
    )  # fmt: skip
    return config, t.AutoModelForImageClassification, "classification"


def methods_of(setting: Setting, objective: Objective) -> list[Any]:
    method = build_method(setting.method)
    head = objective == "classification" and not {"head", "model"} & set(method.kinds)
    return [method, build_method("head")] if head else [method]


def training() -> TrainingSettings:
    return TrainingSettings(patience=None)


def measure(setting: Setting, repeats: int) -> dict[str, float]:
    """Runs real steps; in a process of its own."""
    config, auto, objective = config_of(setting.model)
    before = resident_bytes()
    torch.set_default_dtype(getattr(torch, setting.dtype))
    torch.manual_seed(0)
    model = auto.from_config(config).eval()
    torch.set_default_dtype(torch.float32)
    backbone = Backbone(setting.model, model, None, anatomy_of(model), objective)
    wall = time.perf_counter()
    with PeakMemory(interval_seconds=0.004) as peak:
        seconds = timed_steps(
            backbone, methods_of(setting, objective), training(), setting.shape, repeats, time.process_time
        )
    wall = (time.perf_counter() - wall) / (repeats + 1)
    return {"seconds": seconds, "wall_seconds": wall, "bytes": peak.host_peak_bytes - before}


def trace(setting: Setting) -> dict[str, Any]:
    """Memory by part and work of the same, from the configuration alone."""
    config, auto, objective = config_of(setting.model)
    with torch.device("meta"):
        model = auto.from_config(config)
    backbone: Bare = bare(model.to(getattr(torch, setting.dtype)), setting.model, objective)
    with rehearsing(backbone, methods_of(setting, objective), training()) as rehearsal:
        found = rehearsal.training_step(setting.shape)
    return {"memory": dict(found.memory), "work": found.work}


def apart(work: Callable[[], Any]) -> Any:
    """The result of a function that runs in a forked process.

    Raises:
        RuntimeError: it failed there; its error stands on the screen.
    """
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        status = 1
        try:
            with os.fdopen(writing, "wb") as pipe:
                pickle.dump(work(), pipe)
            status = 0
        finally:
            sys.stdout.flush()
            os._exit(status)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        content = pipe.read()
    _, status = os.waitpid(child, 0)
    if status:
        raise RuntimeError(f"a measured process ended with status {status}")
    return pickle.loads(content)


def run(settings: list[Setting], repeats: int) -> dict[str, Any]:
    """Calibrations and settings in turn, then all predictions."""
    groups = list(dict.fromkeys((s.model, s.dtype) for s in settings))
    calibration: dict[tuple[str, str], list[tuple[dict[str, float], dict[str, Any]]]] = {key: [] for key in groups}
    measured: list[tuple[Setting, dict[str, float], dict[str, Any]]] = []
    every = max(1, len(settings) // 4)
    for number, setting in enumerate(settings):
        if number % every == 0 and number // every < 4:
            for model, dtype in groups:
                cases = CALIBRATION["image" if model == "vit" else "text"]
                answer = 0 if model in ("bert", "vit") else 4
                method, rows, prompt = cases[number // every]
                case = Setting(model, dtype, method, rows, prompt, answer)
                calibration[model, dtype].append(
                    (apart(lambda case=case: measure(case, repeats)), apart(lambda case=case: trace(case)))  # type: ignore[misc]
                )
        measured.append(
            (setting, apart(lambda: measure(setting, repeats)), apart(lambda: trace(setting)))  # noqa: B023 - run at once
        )
        print(f"{number + 1} of {len(settings)}: {setting.model} {setting.method}", file=sys.stderr, flush=True)
    fits = {key: fit(found) for key, found in calibration.items()}
    rows = []
    for setting, real, traced in measured:
        speed, slack, runtime = fits[setting.model, setting.dtype]
        memory = traced["memory"]
        moving = memory.get("activations", 0) + memory.get("logits", 0)
        predicted = sum(memory.values()) + slack * moving + runtime
        rows.append(
            asdict(setting) | {
                "predicted_bytes": predicted, "measured_bytes": real["bytes"], "memory": memory,
                "predicted_seconds": speed.seconds(traced["work"]), "measured_seconds": real["seconds"],
                "wall_seconds": real["wall_seconds"],
            }
        )  # fmt: skip
    fitted_numbers = [
        {"model": m, "dtype": d, "speed": s.to_json(), "slack": k, "runtime_bytes": r}
        for (m, d), (s, k, r) in fits.items()
    ]
    steps = [
        {"model": m, "dtype": d, **real, "memory": traced["memory"]}
        for (m, d), found in calibration.items()
        for real, traced in found
    ]
    return {"rows": rows, "fits": fitted_numbers, "calibration": steps}


def fit(found: list[tuple[dict[str, float], dict[str, Any]]]) -> tuple[Any, float, float]:
    """Speed, the heap's gaps as a share of activations, and what a process takes on its first step."""
    works: list[Work] = [traced["work"] for _, traced in found]
    speed = fitted(prior_speed(), works, [real["seconds"] for real, _ in found], "calibration")
    from scipy.optimize import nnls

    moving = [t["memory"].get("activations", 0) + t["memory"].get("logits", 0) for _, t in found]
    excess = [real["bytes"] - sum(t["memory"].values()) for real, t in found]
    weights = [1 / real["bytes"] for real, _ in found]
    (slack, runtime), _ = nnls(
        [[m * w, 1e6 * w] for m, w in zip(moving, weights, strict=True)],
        [e * w for e, w in zip(excess, weights, strict=True)],
    )
    return speed, float(slack), float(runtime) * 1e6


def shares(rows: list[dict[str, Any]]) -> dict[str, float]:
    """Share of settings whose prediction is close enough."""

    def close(name: str, limit: float) -> float:
        errors = [abs(row[f"predicted_{name}"] / row[f"measured_{name}"] - 1) for row in rows]
        return sum(error <= limit for error in errors) / len(errors)

    return {"memory": close("bytes", CLOSE_MEMORY), "seconds": close("seconds", CLOSE_SECONDS)}


def show(result: dict[str, Any]) -> None:
    """The table."""
    from dollartune.cli.output import print_table

    table = []
    for row in result["rows"]:
        table.append({
            "backbone": f"{row['model']} {row['dtype'].replace('float', '')}", "method": row["method"],
            "batch": f"{row['rows']} x {row['prompt'] + row['answer']}",
            "planned MB": round(row["predicted_bytes"] / 1e6), "measured MB": round(row["measured_bytes"] / 1e6),
            "off by": f"{row['predicted_bytes'] / row['measured_bytes'] - 1:+.0%}",
            "planned ms": round(1000 * row["predicted_seconds"]), "measured ms": round(1000 * row["measured_seconds"]),
            "off by ": f"{row['predicted_seconds'] / row['measured_seconds'] - 1:+.0%}",
        })  # fmt: skip
    print_table(table)
    found = shares(result["rows"])
    print(f"\nmemory within {CLOSE_MEMORY:.0%}: {found['memory']:.0%} of {len(table)}; "
          f"seconds within {CLOSE_SECONDS:.0%}: {found['seconds']:.0%}; wanted {WANTED:.0%} of each")  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--settings", type=int, default=40, help="how many of the 40 settings")
    parser.add_argument("--only", help="one backbone: opt, llama, t5, bert, vit")
    parser.add_argument("--repeats", type=int, default=5, help="measured steps of each")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--show", action="store_true", help="print the table of earlier results and measure nothing")
    arguments = parser.parse_args()
    if arguments.show:
        show(json.loads(arguments.out.read_text()))
        return
    torch.set_num_threads(1)
    chosen = [s for s in _settings() if arguments.only in (None, s.model)][: arguments.settings]
    started = time.perf_counter()
    result = run(chosen, arguments.repeats)
    result |= {
        "machine": {"processor": platform.processor() or platform.machine(), "cores": os.cpu_count(), "threads": 1},
        "versions": {
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "python": platform.python_version(),
        },
        "taken": time.strftime("%Y-%m-%d"),
        "bench_seconds": time.perf_counter() - started,
        "load_average": os.getloadavg()[0],
        "shares": shares(result["rows"]),
    }
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(result, indent=1) + "\n")
    show(result)


if __name__ == "__main__":
    main()
