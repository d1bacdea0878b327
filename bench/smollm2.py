"""SmolLM2-135M-Instruct asked, probed and tuned, beside plain transformers and peft: every study of examples/smollm2, those that
tell most first, and docs/results/smollm2.md anew after each.

    make bench-smollm2      (python bench/smollm2.py [--data-root ../shared/data] [--work studies/smollm2] [--list])

Resumable: what has a whole result in bench/results/smollm2.json is not run again, a study that was ended goes on in --work, and
`--list` says what is left. Ten hours of one thread without bf16; scores count here, seconds do not.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results" / "smollm2.json"
PAGE = HERE.parent / "docs" / "results" / "smollm2.md"
STUDIES = HERE.parent / "examples" / "smollm2"
ANSWERS = 200
"""Greedy requests to a tuned adapter."""

Stage = tuple[str, ...]
STAGES: tuple[Stage, ...] = (
    *(("study", name, "sst2") for name in ("asked", "asked_plainly")), ("plain", "sst2"),
    *(("study", name, "sst2") for name in ("probe", "tuned")), ("answers", "sst2"), ("peft", "sst2", "0"),
    *(("study", name, "ag_news") for name in ("asked", "asked_plainly")), ("plain", "ag_news"),
    *(("study", name, "ag_news") for name in ("probe", "tuned")), ("study", "boolq", "boolq"),
    *(("peft", "sst2", seed) for seed in "12"),
    *(("peft", "ag_news", seed) for seed in "012"),
)  # fmt: skip
"""SST-2 before AG News, ours before theirs: whoever ends the run early has whole tables of the first."""


def run_study(name: str, task: str, data_root: str, work: Path) -> dict[str, Any]:
    """One task of a study, and its leaderboard; trials are called what they are in the study of all tasks."""
    from dollartune.study.api import Study
    from dollartune.study_file import load_study

    path = STUDIES / f"{name}.yaml"
    chosen = [spec for spec in load_study(path).tasks if (spec if isinstance(spec, str) else spec["preset"]) == task]
    results = Study(path, tasks=chosen, name=f"{name}-{task}", output=str(work), data_root=data_root).run()
    kept = ("label", "score", "low", "high", "seeds", "trainable", "seconds")
    rows = [{key: row[key] for key in kept} for row in results.leaderboard().to_dict("records")]
    versions = ", ".join(f"{name} {version}" for name, version in results.done()[0].environment.versions.items())
    return {"versions": versions, "rows": rows, "complete": True}


def run_script(stage: Stage, data_root: str, work: Path) -> dict[str, Any]:
    """What the script of a comparison prints. Its exit code 1 says that the sides differ, which is a result."""
    kind, task = stage[:2]
    script, given, more = {
        "plain": ("smollm2_plain.py", work / f"asked-{task}", ()),
        "peft": ("smollm2_peft.py", work / f"tuned-{task}", ("--task", task, "--seeds", stage[-1])),
        "answers": ("smollm2_answers.py", work / f"tuned-{task}", ("--rows", str(ANSWERS))),
    }[kind]
    given = adapter_of_lora(given) if kind == "answers" else given
    command = [sys.executable, str(HERE / script), str(given), "--data-root", data_root, *more]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode not in (0, 1) or "Traceback" in done.stderr:
        raise SystemExit(done.stderr)
    return {"printed": done.stdout.strip().splitlines(), "complete": True}


def adapter_of_lora(study: Path) -> Path:
    """Of the first seed."""
    from dollartune.study.api import open_study

    record = next(r for r in open_study(str(study)).done() if r.trial.methods[0]["method"] == "lora")
    return study / "trials" / record.id / "adapter"


def stored() -> dict[str, Any]:
    """Stage -> its result."""
    return json.loads(RESULTS.read_text()) if RESULTS.is_file() else {}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-root", default="../shared/data")
    parser.add_argument("--work", type=Path, default=Path("studies/smollm2"))
    parser.add_argument("--list", action="store_true", help="print the stages that are left, and run none")
    given = parser.parse_args()
    for stage in STAGES:
        key = " ".join(stage)
        if stored().get(key, {}).get("complete"):
            continue
        print(time.strftime("%H:%M"), key, flush=True)
        if given.list:
            continue
        run = run_study(*stage[1:], given.data_root, given.work) if stage[0] == "study" else None
        result = run or run_script(stage, given.data_root, given.work)
        RESULTS.write_text(json.dumps(stored() | {key: result}, indent=1) + "\n")
        made = subprocess.run(
            [sys.executable, str(HERE / "smollm2_page.py")], check=True, capture_output=True, text=True
        )
        PAGE.write_text(made.stdout)


if __name__ == "__main__":
    main()
