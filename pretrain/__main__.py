"""Command line: `python -m pretrain prepare`, then `python -m pretrain train tiny-decoder`."""

from __future__ import annotations

import argparse
from pathlib import Path

import yaml

HERE = Path(__file__).parent
EMBEDDED = HERE.parent / "src" / "dollartune" / "backbones" / "embedded"


def main() -> None:
    """Parses the command line and runs one step."""
    parser = argparse.ArgumentParser(prog="python -m pretrain")
    parser.add_argument("step", choices=("fetch", "prepare", "train", "vit", "evaluate", "tuned", "cards"))
    parser.add_argument("model", nargs="?", help="backbone to train; for `tuned`: random, pretrained or both")
    parser.add_argument("--work", type=Path, default=HERE / "work")
    parser.add_argument("--export", type=Path, default=EMBEDDED, help="folder that receives one folder per backbone")
    parser.add_argument(
        "--again", action="store_true", help="train: go on from the exported weights, with the settings under `again`"
    )
    parser.add_argument("--threads", type=int, default=2)
    given = parser.parse_args()
    config = yaml.safe_load((HERE / "config.yaml").read_text())
    given.work.mkdir(parents=True, exist_ok=True)
    if given.step == "train":
        from pretrain.train import Trainer, keep_freed_memory

        keep_freed_memory()
        again = HERE / "runs" / f"{given.model}.json" if given.again else None
        Trainer(given.model, config, given.work, given.export, given.threads, again).run()
    elif given.step == "vit":
        from pretrain.vision import train_vision

        train_vision(config["vision"], given.work, given.export, given.threads)
    elif given.step == "evaluate":
        from pretrain.evaluate import evaluate

        evaluate(given.work, given.export, config["tokenizer"]["vocabulary"], HERE / "runs" / "evaluation.json")
    elif given.step == "tuned":
        from pretrain.tuned import PARTS, measure

        measure(given.work, HERE / "runs" / "tuning.json", (given.model,) if given.model else PARTS)
    elif given.step == "cards":
        from pretrain.cards import write

        write(config, given.work, given.export, HERE / "runs")
    else:
        from pretrain import prepare

        (prepare.fetch if given.step == "fetch" else prepare.prepare)(config, given.work)


if __name__ == "__main__":
    main()
