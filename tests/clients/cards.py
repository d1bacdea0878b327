"""The program on the card of each exported format, in an environment that has what the card says and nothing else: `make cards`.

    python tests/clients/cards.py [--environments .venv-clients] [FORMAT ...]

Two adapters are tuned on tiny-decoder, as a folder that a stranger has; each is exported, the packages that its card names are
installed, and the card's program answers rows as `dollartune predict` does.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from run import command, environment, tune

from dollartune.backbones.embedded import embedded_path

LORA, DORA = "lora: {lr: 3e-3}", "dora: {lr: 3e-3}"
FORMATS = {"dollartune": LORA, "peft": LORA, "lora": DORA, "merged": LORA, "gguf": LORA, "head": "linear_probe"}
"""Format -> the method whose adapter is exported: one that is no LoRA as a LoRA, and a probe, which alone is a head."""
ASKED = 5
"""Rows that each program answers: every answer is a process that imports torch."""
CHECKOUT = Path(__file__).resolve().parents[2]


def packages_of(card: str) -> list[str]:
    """What the card tells to install; our own package is this checkout."""
    (line,) = re.findall(r"^pip install (.+)$", card, re.MULTILINE)
    return [str(CHECKOUT) if name == "dollartune" else name for name in line.split()]


def answers(python: Path, card: str, folder: Path, texts: list[str]) -> list[str]:
    """The label that the card's program prints for each text."""
    code = card.split("```python\n")[1].split("```")[0]
    assert '"..."' in code, "the program has a place for the row"
    # Without our own path: what is not installed there must not be found.
    bare = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    found = []
    for text in texts:
        asked = [str(python), "-c", code.replace('"..."', json.dumps(text))]
        ran = subprocess.run(asked, cwd=folder, env=bare, check=True, capture_output=True, text=True)
        found.append(ran.stdout.split()[0])
    return found


def predicted(adapter: Path, test: Path) -> list[dict[str, str]]:
    told = subprocess.run(command("predict", str(adapter), str(test)), check=True, capture_output=True, text=True)
    return [json.loads(line) for line in told.stdout.splitlines() if line.startswith("{")]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("formats", nargs="*")
    parser.add_argument("--environments", type=Path, default=Path(".venv-clients"))
    given = parser.parse_args()
    failed = []
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        adapters: dict[str, tuple[Path, Path]] = {}
        for form in given.formats or FORMATS:
            method = FORMATS[form]
            if method not in adapters:
                (made := root / f"tuned-{len(adapters)}").mkdir()
                adapters[method] = tune(made, method, str(embedded_path("tiny-decoder")))
            adapter, test = adapters[method]
            out = root / "exported" / form
            try:
                subprocess.run(command("export", str(adapter), "--format", form, "--out", str(out)), check=True)
                card = (out / "README.md").read_text(encoding="utf8")
                packages = packages_of(card)
                name = "card-" + "-".join(Path(one).name for one in packages)
                # At the versions that this checkout is tested with.
                versions = ["-c", str(CHECKOUT / "constraints.txt")]
                python = environment(name, [*packages, *versions], given.environments.absolute())
                expected = predicted(adapter, test)[:ASKED]
                texts = [row["text"] for row in (json.loads(line) for line in test.with_suffix(".jsonl").open())][
                    :ASKED
                ]
                got = answers(python, card, out, texts)
                assert got == [row["prediction"] for row in expected], (got, expected)
                said = f"{len(got)} of {len(got)} labels equal, by {' '.join(name.split('-')[1:])}"
            except (subprocess.CalledProcessError, AssertionError) as error:
                failed.append(form)
                said = f"{error}\n{getattr(error, 'stderr', '') or ''}"[-600:]
            print(f"{'FAILED' if form in failed else 'ok':6s} {form} {said}", flush=True)
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
