"""Clients of others against a server of ours, each in an environment of its own: `make clients`.

    python tests/clients/run.py [--environments .venv-clients] [NAME ...]

The server has tiny-decoder and an adapter that is tuned for it here (half a minute). lm-eval's accuracy through the server is
compared with that of `dollartune evaluate`, and its labels with those of `dollartune predict`, row by row. Agents, which let the
model choose among tools, ask a second server, whose tiny-decoder has a chat template that shows it tools.
"""

from __future__ import annotations

import argparse
import csv
import json
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from dollartune.backbones.embedded import embedded_path

HERE = Path(__file__).resolve().parent
CLIENTS = {
    "openai": "openai",
    "instructor": "instructor",
    "langchain-openai": "langchain-openai",
    "litellm": "litellm",
    "lm-eval": "lm-eval[api]",
    "pydantic-ai": "pydantic-ai-slim[openai]",
    "openai-agents": "openai-agents",
    "llama-index": "llama-index-llms-openai-like llama-index-embeddings-openai-like",
    "dspy": "dspy",
}
"""Name -> what pip installs for it. Each alone: together their pins leave versions of years ago."""
AGENTS = ("pydantic-ai", "openai-agents", "llama-index")
# As Hermes' and Qwen's: the tools before the conversation, calls in marks.
TEMPLATE = (
    "{% if tools %}{% for tool in tools %}<tool>{{ tool | tojson }}</tool>{% endfor %}{% endif %}"
    "{% for m in messages %}[{{ m.role }}] {{ m.content }}"
    "{% for call in m.tool_calls or [] %}<tool_call>{{ call.function | tojson }}</tool_call>{% endfor %}\n"
    "{% endfor %}[assistant]"
)
THINGS = ("the film", "my lunch", "this song", "a long walk", "the book", "our trip", "the game", "her speech")
WORDS = {"good": ("lovely", "bright", "fine", "sweet", "superb"), "bad": ("awful", "dull", "poor", "sour", "grim")}
STUDY = """
backbone: BACKBONE
task: {data: train.csv, text: text, label: label, prompt: "Review: {text}\\nGood or bad?"}
methods: [METHOD]
scales: [40]
seeds: 1
baselines: false
training: {epochs: 4, max_length: 64}
evaluation: {rows: 6, free_generation: false, inference_cost: false}
"""


def environment(name: str, packages: Sequence[str], root: Path) -> Path:
    """The interpreter that has these packages; made where it is not there."""
    python = root / name / "bin" / "python"
    done = root / name / "installed"
    if not done.is_file():
        subprocess.run([sys.executable, "-m", "venv", str(root / name)], check=True)
        pip = [str(python), "-m", "pip", "install", "-q", "--disable-pip-version-check", *packages]
        subprocess.run(pip, check=True)
        done.touch()
    return python


def command(*words: str) -> list[str]:
    return [sys.executable, "-m", "dollartune", *words]


def tune(folder: Path, method: str = "lora: {lr: 3e-3}", backbone: str = "tiny-decoder") -> tuple[Path, Path]:
    """An adapter, and rows that it has not seen."""
    rows = [
        {"text": f"{thing} was {word} today", "label": label}
        for number in range(5)
        for thing in THINGS
        for label, words in WORDS.items()
        for word in (words[number],)
    ]
    # A fifth of the rows is labelled wrongly, so that no model is right on all: equal accuracies then say something.
    test = [dict(row, label="bad" if i % 5 == 0 else row["label"]) for i, row in enumerate(rows[48:])]
    for name, own in (("train", rows[:48]), ("test", test)):
        with (folder / f"{name}.csv").open("w", encoding="utf8", newline="") as file:
            writer = csv.DictWriter(file, ("text", "label"))
            writer.writeheader()
            writer.writerows(own)
    (folder / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in test), encoding="utf8")
    study = STUDY.replace("BACKBONE", backbone).replace("METHOD", method)
    (folder / "study.yaml").write_text(study, encoding="utf8")
    subprocess.run(command("run", "study.yaml", "--no-report", "--output", "out"), cwd=folder, check=True)
    return next(folder.glob("out/**/adapter.json")).parent, folder / "test.csv"


def shown_tools(folder: Path) -> Path:
    """tiny-decoder with a chat template."""
    model = Path(shutil.copytree(embedded_path("tiny-decoder"), folder / "tiny-decoder"))
    settings = model / "tokenizer_config.json"
    told = {**json.loads(settings.read_text(encoding="utf8")), "chat_template": TEMPLATE}
    settings.write_text(json.dumps(told), encoding="utf8")
    return model


@contextmanager
def server(*words: str) -> Iterator[str]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    process = subprocess.Popen(command("serve", *words, "--port", str(port)))
    try:
        for _ in range(600):
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=1)
                break
            except OSError:
                time.sleep(0.2)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        process.terminate()
        process.wait(60)


def compare_lm_eval(python: Path, base_url: str, adapter: Path, test: Path) -> str:
    """lm-eval through the server against our own evaluation of the same rows."""
    out = test.parent / "lm_eval.json"
    words = json.dumps({"bad": "bad", "good": "good"})
    prompt = "Review: {{text}}\nGood or bad?"
    rows = str(test.with_suffix(".jsonl"))
    client = [str(python), str(HERE / "client_lm_eval.py"), base_url, "reviews", rows, prompt, words, str(out)]
    subprocess.run(client, check=True)
    theirs = json.loads(out.read_text())
    ours = subprocess.run(
        command("evaluate", str(adapter), str(test), "--json"), check=True, capture_output=True, text=True
    )
    scores = json.loads(ours.stdout)["scores"]
    told = subprocess.run(command("predict", str(adapter), str(test)), check=True, capture_output=True, text=True)
    labels = [json.loads(line)["prediction"] for line in told.stdout.splitlines() if line.startswith("{")]
    different = sum(one != other for one, other in zip(labels, theirs["predicted"], strict=True))
    assert different == 0, f"{different} of {len(labels)} labels differ"
    assert abs(scores["accuracy"] - theirs["accuracy"]) < 1e-9, (scores, theirs["accuracy"])
    return f"accuracy {theirs['accuracy']:.4f} both ways, {len(labels)} of {len(labels)} labels equal"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*")
    parser.add_argument("--environments", type=Path, default=Path(".venv-clients"))
    given = parser.parse_args()
    failed = []
    with tempfile.TemporaryDirectory() as folder:
        adapter, test = tune(Path(folder))
        model = shown_tools(Path(folder))
        with server("tiny-decoder", "--adapter", f"reviews={adapter}") as plain, server(str(model)) as with_tools:
            for name in given.names or CLIENTS:
                base_url = with_tools if name in AGENTS else plain
                python = environment(name, CLIENTS[name].split(), given.environments.absolute())
                said = ""
                try:
                    if name == "lm-eval":
                        said = compare_lm_eval(python, base_url, adapter, test)
                    else:
                        script = HERE / f"client_{name.replace('-', '_')}.py"
                        subprocess.run([str(python), str(script), base_url, "tiny-decoder"], check=True)
                except (subprocess.CalledProcessError, AssertionError) as error:
                    failed.append(name)
                    said = str(error)[:300]
                print(f"{'FAILED' if name in failed else 'ok':6s} {name} {said}", flush=True)
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
