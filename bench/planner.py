"""Does a plan keep its word? Predicted against measured peak memory and seconds, over methods x shapes x batches x formats.

    make bench-planner                          what is not measured yet: memory, then seconds, then the table
    python bench/planner.py memory --for 120    the same in pieces: none begins after so many seconds; --again: everything anew
    python bench/planner.py seconds --threads 2 with two threads, whose measurements stand beside those with one
    python bench/planner.py show                the table of what was measured, with today's predictions (a minute)

memory    highest resident memory of the process while it trains, beyond what it had before it loaded the backbone, with
          everything imported and one small step done. Every setting has a process of its own. It may be measured on a busy
          machine. Predictions come from the configuration alone; how much the allocator holds beyond it was fitted here, two
          numbers of `planner.hardware`. Their share of good predictions on settings that a fit has not seen is printed too.
seconds   median optimizer step, on an idle machine (its load is written down, and stands in the table). The machine's speed is
          what `plan` itself measures of a backbone before it plans (`calibration.calibrate`).

Results are written after each measurement, so that an interrupted run goes on where it was.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import os
import platform
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
import transformers
from planner_settings import BACKBONES, TRAINING, Setting, config_of, settings

from dollartune.cli.output import print_table
from dollartune.planner.dry_run import PassCost, bare, dry_run_of
from dollartune.planner.hardware import Hardware, this_hardware
from dollartune.planner.roofline import Speed, core_speed
from dollartune.planner.trial_plan import memory_parts

BENCH = Path(__file__).parent
RESULTS = BENCH / "results" / "planner.json"
WEIGHTS = Path(tempfile.gettempdir()) / "dollartune-bench-planner"
CLOSE_MEMORY, CLOSE_SECONDS, WANTED = 0.10, 0.20, 0.90
THREADS = (1, 2)

Row = dict[str, Any]


class Results:
    """What was measured so far, in a file."""

    def __init__(self, path: Path, again: bool = False) -> None:
        self.path = path
        self.data: dict[str, Any] = {"memory": {}, "seconds": {}}
        if path.is_file() and not again:
            self.data |= {name: json.loads(path.read_text())[name] for name in ("memory", "seconds")}

    def write(self, **more: Any) -> None:
        """Through a temporary file, so that what is there is whole."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.data |= more
        temporary = self.path.with_suffix(".tmp")
        temporary.write_text(json.dumps(self.data, indent=1) + "\n")
        temporary.replace(self.path)


@dataclass(frozen=True)
class Piece:
    """What one call measures."""

    models: tuple[str, ...]
    threads: int
    folder: Path
    ends: float = math.inf
    """Monotonic seconds after which no measurement begins."""

    def key(self, name: str) -> str:
        """Of a setting or a backbone in the results."""
        return key_of(name, self.threads)

    def measured(self, *arguments: str) -> dict[str, Any]:
        """What `planner_measure.py` prints."""
        command = [sys.executable, str(BENCH / "planner_measure.py"), *arguments, str(self.folder)]
        environment = os.environ | {"OMP_NUM_THREADS": str(self.threads)}
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=environment)
        found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        return found


def key_of(name: str, threads: int) -> str:
    return name if threads == 1 else f"{name}, {threads} threads"


def measure_memory(results: Results, piece: Piece) -> None:
    for number, setting in enumerate(settings()):
        if setting.model in piece.models and piece.key(setting.name) not in results.data["memory"]:
            if time.monotonic() > piece.ends:
                return
            results.data["memory"][piece.key(setting.name)] = piece.measured("memory", str(number))
            results.write()
            print(f"memory {number + 1} of {len(settings())}: {setting.name}", file=sys.stderr, flush=True)


def measure_seconds(results: Results, piece: Piece) -> None:
    for model in piece.models:
        if piece.key(model) not in results.data["seconds"]:
            if time.monotonic() > piece.ends:
                return
            found = piece.measured("seconds", model)
            results.data["seconds"][piece.key(model)] = found | {"load_average": os.getloadavg()[0]}
            results.write()
            print(f"seconds: {model}", file=sys.stderr, flush=True)


def predicted(setting: Setting) -> PassCost:
    """One training step, from the configuration alone."""
    config, auto, objective = config_of(setting.model)
    with torch.device("meta"):
        model = auto.from_config(config)
    backbone = bare(model.to(getattr(torch, setting.dtype)), setting.model, objective)
    with dry_run_of(backbone, setting.methods(objective), TRAINING) as dry:
        return dry.training_step(setting.shape)


def rows(results: Results) -> list[Row]:
    """Predicted beside measured, of each setting that was measured, by numbers of threads."""
    found = []
    for threads, setting in itertools.product(THREADS, settings()):
        memory = results.data["memory"].get(key_of(setting.name, threads))
        seconds = results.data["seconds"].get(key_of(setting.model, threads))
        if memory is None and seconds is None:
            continue
        speed = core_speed(threads, half=True) if seconds is None else Speed.from_json(seconds["speed"])
        hardware: Hardware = this_hardware(speed)
        step = predicted(setting)
        parts = memory_parts(step.memory, hardware, keeps_best=False)
        del parts["runtime"]
        moving = step.memory.get("activations", 0) + step.memory.get("logits", 0)
        row = asdict(setting) | {
            "alive_bytes": step.peak_bytes,
            "moving_bytes": moving,
            "name": setting.name,
            "threads": threads,
            "dtype": setting.dtype,
            "parts": parts,
        }
        if memory is not None:
            row |= {"predicted_bytes": sum(parts.values()), "measured_bytes": memory["measured_bytes"]}
        if seconds is not None:
            measured_here = seconds["measured_seconds"][setting.name]
            row |= {"predicted_seconds": speed.seconds(step.work), "measured_seconds": measured_here}
            row["load_average"] = seconds["load_average"]
        found.append(row)
    return found


def share(found: list[Row], name: str, limit: float) -> float | None:
    """Share of settings whose prediction is close enough; None if nothing was measured."""
    both = [row for row in found if f"measured_{name}" in row]
    errors = [abs(row[f"predicted_{name}"] / row[f"measured_{name}"] - 1) for row in both]
    return sum(error <= limit for error in errors) / len(errors) if errors else None


def unseen_share(found: list[Row]) -> float | None:
    """Share of good memory predictions where the allocator's two numbers are fitted without a backbone's settings, and
    judged on those."""
    rows = [row for row in found if "measured_bytes" in row]
    good = 0
    for model in {_backbone(row) for row in rows}:
        others = [row for row in rows if _backbone(row) != model]
        if not others:
            return None
        judged = [row for row in rows if _backbone(row) == model]
        good += sum(error <= CLOSE_MEMORY for error in _memory_errors(judged, *_fitted(others)))
    return good / len(rows) if rows else None


def _backbone(row: Row) -> str:
    """In whichever number format: what is fitted on one says much of the other."""
    return str(row["model"]).removesuffix(" in bf16")


def _fitted(rows: list[Row]) -> tuple[float, float]:
    """The allocator's two numbers that suit these settings best."""
    return min(
        ((share / 100, 1e6 * megabytes) for share in range(0, 80, 3) for megabytes in range(0, 40, 2)),
        key=lambda numbers: sum(min(0.2, error) for error in _memory_errors(rows, *numbers)),
    )


def _memory_errors(rows: list[Row], slack: float, base: float) -> list[float]:
    return [abs((row["alive_bytes"] + slack * row["moving_bytes"] + base) / row["measured_bytes"] - 1) for row in rows]


def left_out(found: list[Row]) -> list[dict[str, Any]]:
    """One row per backbone: how good its plans are where nothing was fitted on it. Of memory the allocator's two numbers are
    fitted on the other backbones' settings; of seconds nothing is fitted, as `plan` measures the machine's speed itself."""
    table = []
    for model, threads in dict.fromkeys((row["model"], row["threads"]) for row in found):
        mine = [row for row in found if (row["model"], row["threads"]) == (model, threads)]
        cells: dict[str, Any] = {"backbone left out": _shown(mine[0]), "threads": threads, "settings": len(mine)}
        others = [row for row in found if _backbone(row) != _backbone(mine[0]) and "measured_bytes" in row]
        judged = [row for row in mine if "measured_bytes" in row]
        if others and judged:
            cells |= _spread("MB", _memory_errors(judged, *_fitted(others)), CLOSE_MEMORY)
        timed = [row for row in mine if "measured_seconds" in row]
        if timed:
            errors = [abs(row["predicted_seconds"] / row["measured_seconds"] - 1) for row in timed]
            cells |= _spread("ms", errors, CLOSE_SECONDS) | {"load": f"{timed[0]['load_average']:.1f}"}
        table.append(cells)
    return table


def _shown(row: Row) -> str:
    return f"{_backbone(row)} {'bf16' if row['dtype'] == 'bfloat16' else 'fp32'}"


def missing(results: Results) -> list[str]:
    """What was not measured, in sentences."""
    lines = []
    for part, threads in itertools.product(("memory", "seconds"), THREADS):
        done = results.data[part]
        absent = dict.fromkeys(
            setting.model
            for setting in settings()
            if key_of(setting.name if part == "memory" else setting.model, threads) not in done
        )
        if absent:
            which = "every backbone" if len(absent) == len(BACKBONES) else ", ".join(absent)
            lines.append(f"not measured yet: {part} with {threads} thread{'s'[: threads > 1]} of {which}")
    return lines


def _spread(unit: str, errors: list[float], limit: float) -> dict[str, str]:
    return {
        f"{unit} within {limit:.0%}": f"{sum(error <= limit for error in errors) / len(errors):.0%}",
        f"{unit} off by, median": f"{median(errors):.0%}",
        f"{unit} off by, worst": f"{max(errors):.0%}",
    }


def table_of(found: list[Row]) -> list[dict[str, Any]]:
    """The table, as a reader wants it."""
    table = []
    for row in found:
        cells = {
            "backbone": _shown(row),
            "threads": row["threads"],
            "method": row["method"],
            "batch": f"{row['rows']} x {row['prompt'] + row['answer']}",
        }
        for name, unit, scale in (("bytes", "MB", 1e-6), ("seconds", "ms", 1e3)):
            if f"measured_{name}" in row:
                planned, real = row[f"predicted_{name}"], row[f"measured_{name}"]
                cells |= {f"planned {unit}": round(scale * planned), f"measured {unit}": round(scale * real)}
                cells |= {f"{unit} off by": f"{planned / real - 1:+.0%}"}
        table.append(cells)
    return table


def verdicts(found: list[Row]) -> list[str]:
    """How many predictions were close."""
    lines = []
    for name, what, limit in (("bytes", "peak memory", CLOSE_MEMORY), ("seconds", "seconds", CLOSE_SECONDS)):
        if (close := share(found, name, limit)) is not None:
            lines.append(
                f"{what} within {limit:.0%} of what was measured: {close:.0%} of settings (wanted: {WANTED:.0%})"
            )
    if (unseen := unseen_share(found)) is not None:
        how = "where the allocator's two numbers are fitted without the settings of the backbone that is judged"
        lines.append(f"peak memory within {CLOSE_MEMORY:.0%}, {how}: {unseen:.0%}")
    return lines


def write_page(found: list[Row], results: Results, path: Path) -> None:
    """The table as a page of the site."""
    table = table_of(found)
    versions = ", ".join(f"{name} {version}" for name, version in results.data["versions"].items())
    lines = [
        "# Planned against measured",
        "",
        f"Made by `make bench-planner`, last on {results.data['taken']}: {versions}.",
        "Backbones of 1 to 135 million parameters with random weights; a setting is a method and a batch (rows x tokens).",
        "Memory is what a training process takes beyond an idle one: planned from the configuration alone, with two numbers of",
        "the allocator that were fitted on these settings (in the table by backbones: on the others). What oneDNN compiles for",
        "each unlike product, and keeps, is read by itself: `python bench/compiled_kernels.py`. Seconds are of an optimizer",
        "step: planned from the configuration and from what `dollartune plan` measures before it plans, which no setting is",
        "part of; beside them stands the load of the machine, whose two cores should have had nothing else to do.",
        "",
        *(f"- {line}" for line in (*verdicts(found), *missing(results))),
        "",
        "## Backbones that nothing was fitted on",
        "",
        "Each backbone judged with the allocator's two numbers fitted on the others, in whichever number format.",
        "",
        *_markdown(left_out(found), 1),
        "",
        "## Every setting",
        "",
        *_markdown(table, 4),
    ]
    path.write_text("\n".join(lines) + "\n")


def _markdown(table: list[dict[str, Any]], names: int) -> list[str]:
    """`names`: columns that are no numbers."""
    columns = list(dict.fromkeys(name for row in table for name in row))
    return [
        "| " + " | ".join(columns) + " |",
        "|" + "---|" * names + "---:|" * (len(columns) - names),
        *("| " + " | ".join(str(row.get(name, "-")) for name in columns) + " |" for row in table),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("parts", nargs="*", default=["memory", "seconds", "show"], metavar="memory|seconds|show")
    parser.add_argument(
        "--only", choices=list(BACKBONES), action="append", help="one backbone; may be given several times"
    )
    parser.add_argument("--threads", type=int, choices=THREADS, default=1)
    parser.add_argument(
        "--for", type=float, default=math.inf, dest="seconds", help="begin no measurement after so many seconds"
    )
    parser.add_argument("--again", action="store_true", help="forget what was measured before")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--page", type=Path, help="also write the table as a page of the site")
    parser.add_argument("--weights", type=Path, default=WEIGHTS, help="folder that keeps the backbones")
    arguments = parser.parse_args()
    if wrong := set(arguments.parts) - {"memory", "seconds", "show"}:
        parser.error(f"{', '.join(wrong)}: give memory, seconds, show, or nothing for all three")
    results = Results(arguments.out, arguments.again)
    piece = Piece(
        tuple(arguments.only or BACKBONES), arguments.threads, arguments.weights, time.monotonic() + arguments.seconds
    )
    if "memory" in arguments.parts:
        measure_memory(results, piece)
    if "seconds" in arguments.parts:
        measure_seconds(results, piece)
    if "show" not in arguments.parts:
        return
    found = rows(results)
    limits = {"bytes": CLOSE_MEMORY, "seconds": CLOSE_SECONDS}
    results.write(
        rows=found,
        shares={name: share(found, name, limit) for name, limit in limits.items()},
        unseen_share={"bytes": unseen_share(found)},
        machine={"processor": platform.processor() or platform.machine(), "cores": os.cpu_count()},
        versions={
            "torch": torch.__version__, "transformers": transformers.__version__, "python": platform.python_version(),
        },
        taken=time.strftime("%Y-%m-%d"),
    )  # fmt: skip
    print_table(table_of(found))
    print()
    print_table(left_out(found))
    print()
    print("\n".join([*verdicts(found), *missing(results)]))
    if arguments.page is not None:
        write_page(found, results, arguments.page)


if __name__ == "__main__":
    main()
