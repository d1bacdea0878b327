"""How long the commands take that read a large study: 2,000 trials with 1,774 predictions each.

    python bench/many_trials.py [--trials 2000] [--rows 1774] [--scales 4] [--folder DIR] [--again]

A small study is really run (two methods and few-shot prompting on an embedded decoder). A study file of `--trials` trials
is then filled with copies of its records: each trial gets the record of a small one, its facts in their places, and
`--rows` predictions drawn from the small one's rows by a generator seeded with the trial's identifier, so that two runs
of this script make the same study. The commands run as whole processes, as a person runs them, start of Python included.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dollartune.engines.display import Display
from dollartune.evaluate.evaluation import Prediction
from dollartune.study.api import Study
from dollartune.study_file import load_study
from dollartune.trials.expand import plan
from dollartune.trials.record import DoneRecord, TrialFacts
from dollartune.trials.store import Store
from dollartune.trials.trial import Trial

BARS = {"results": 10.0, "report": 20.0, "status": 1.0, "check": 3.0, "plan": 6.0}
"""Seconds that each command may take with the default numbers, on two cores."""
SMALL: dict[str, Any] = {
    "name": "small",
    "backbone": "tiny-decoder",
    "task": "demo_library",
    "methods": ["lora", "bitfit", "few_shot"],
    "scales": [32],
    "seeds": 2,
    "budget": {"price": "2/h"},
    "training": {"epochs": 4, "max_length": 64, "validation_rows": 8},
    "evaluation": {"rows": 32},
    "baselines": False,  # the number of trials is what is asked for
}
SEEDS = 5


def large_study(trials: int, scales: int, rows: int) -> dict[str, Any]:
    """A study file of that many trials: learning rates of three methods, on `scales` numbers of rows, with five seeds."""
    variants, rest = divmod(trials, SEEDS * scales)
    if rest or variants < 1:
        raise SystemExit(f"--trials must be a multiple of {SEEDS} seeds x {scales} scales; got {trials}.")
    rates = [round(1e-4 * 1.05**step, 9) for step in range(variants)]
    third = variants // 3
    parts = {"lora": rates[:third], "bitfit": rates[third : 2 * third], "ia3": rates[2 * third :]}
    return {
        **SMALL,
        "name": "large",
        "methods": [{name: {"lr": values}} for name, values in parts.items() if values],
        "scales": [100 * 2**step for step in range(scales)],
        "seeds": SEEDS,
        "evaluation": {"rows": rows},
    }


def fill(store: Store, trials: Sequence[Trial], small: Study, rows: int) -> None:
    """Writes a record for each trial."""
    templates = [record for record in small.results().done() if record.training is not None]
    predictions = {record.id: small.store.predictions(record.id) for record in templates}
    for trial in trials:
        chance = random.Random(trial.identifier)
        template = templates[chance.randrange(len(templates))]
        skill = 0.5 + 0.3 * random.Random(trial.variant.label).random()
        made = [_prediction(number, chance, skill, predictions[template.id]) for number in range(rows)]
        score = sum(bool(row.correct) for row in made) / rows
        test = template.test.model_copy(update={"score": score, "examples": rows, "scores": {"accuracy": score}})
        changed = {"id": trial.identifier, "trial": TrialFacts.model_validate(trial.to_json()), "test": test}
        record: DoneRecord = template.model_copy(update=changed)
        store.write(trial.identifier, record, made)


def _prediction(number: int, chance: random.Random, skill: float, rows: Sequence[Mapping[str, Any]]) -> Prediction:
    """A real row's text and probabilities; the right answer is that of the row's number, so that all trials share it."""
    row = dict(rows[chance.randrange(len(rows))])
    labels = list(row["probabilities"])
    expected = labels[number % len(labels)]
    predicted = expected if chance.random() < skill else chance.choice(labels)
    shared = {"example_id": f"test/{number}", "expected": expected, "predicted": predicted}
    return Prediction(**{**row, **shared, "correct": predicted == expected, "references": ()})


def seconds_of(command: Sequence[str]) -> tuple[float, float]:
    """(on the clock, of processor) of a whole process; they differ where other processes are busy too."""
    began, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run([sys.executable, "-m", "dollartune", *command], capture_output=True, text=True, timeout=1800)
    if done.returncode:
        raise SystemExit(f"dollartune {' '.join(command)} failed:\n{done.stderr[-3000:]}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return time.perf_counter() - began, used


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=2000)
    parser.add_argument("--rows", type=int, default=1774)
    parser.add_argument("--scales", type=int, default=4, help="boards; the fewer, the more variants stand on each")
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "dollartune-many-trials")
    parser.add_argument("--again", action="store_true", help="use the study that an earlier run made")
    parser.add_argument("--only", nargs="*", choices=list(BARS), default=list(BARS))
    asked = parser.parse_args()
    output = asked.folder / f"{asked.trials}x{asked.rows}x{asked.scales}"
    file = output / "large.json"
    if not (asked.again and file.is_file()):
        began = time.perf_counter()
        small = Study({**SMALL, "output": str(output)})
        small.run(display=Display())
        settings = {**large_study(asked.trials, asked.scales, asked.rows), "output": str(output)}
        trials = plan(load_study(settings), read_rows=False)[0]
        assert len(trials) == asked.trials
        store = Store(output / "large")
        text = load_study(settings).model_dump_json(indent=1, exclude={"output", "engine"})
        store.create(text, [trial.identifier for trial in trials])
        fill(store, trials, small, asked.rows)
        file.write_text(
            json.dumps(settings)
        )  # JSON is YAML; written last, so that a broken run is not taken for a whole one
        print(f"made {len(trials)} trials with {asked.rows} predictions each in {time.perf_counter() - began:.0f} s")
    folder = str(output / "large")
    commands = {"results": [folder], "report": [folder], "status": [folder], "check": [str(file)], "plan": [str(file)]}
    print(f"{os.cpu_count()} cores, OMP_NUM_THREADS={os.environ.get('OMP_NUM_THREADS', 'not set')}")
    for name in asked.only:
        seconds, used = seconds_of([name, *commands[name]])
        verdict = "kept" if seconds <= BARS[name] else "MISSED"
        print(
            f"{name:8} {seconds:6.1f} s ({used:5.1f} s of processor)   bar {BARS[name]:4.0f} s   {verdict}", flush=True
        )


if __name__ == "__main__":
    main()
