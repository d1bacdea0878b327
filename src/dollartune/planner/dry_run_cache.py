"""Dry runs that were made before, kept in the cache folder: a plan of the same study file is then a matter of arithmetic.

A dry run takes 0.1 to 0.5 s on a processor, and a study of 2,000 trials has about a hundred different ones. What it comes to
depends on the backbone's tensors, the method's settings, how it is trained, the shape of the batch, and on the code that is
run dry: this package, torch and transformers. All of that is in the name of the file.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dollartune.cache import cache_directory
from dollartune.files import write_atomically
from dollartune.planner.dry_run import Bare, PassCost
from dollartune.planner.op_trace import Kernel, Work

if TYPE_CHECKING:
    from dollartune.methods.base import Method
    from dollartune.train.settings import TrainingSettings

PACKAGE = Path(__file__).parents[1]


def cache_file(
    backbone: Bare, methods: Sequence[Method[Any]], structure: str, training: TrainingSettings, device: str
) -> Path | None:
    """Where the dry runs of one adapter on one backbone are kept; None where they are not: the code of a method that
    another package brings is in no hash of ours, and one that reads files may read others tomorrow."""
    # Its name and settings may stay while its code changes.
    if any(not type(method).__module__.startswith("dollartune.") or _reads_files(method) for method in methods):
        return None
    # The config does not say in which format a backbone was loaded.
    tensors = [(name, tuple(t.shape), str(t.dtype)) for name, t in backbone.model.state_dict(keep_vars=True).items()]
    decisive = [
        backbone.model.config.to_json_string(), backbone.objective, tensors, structure, training.model_dump_json(), device,
        _code(),
    ]  # fmt: skip
    return cache_directory() / "dry_runs" / f"{hashlib.sha256(repr(decisive).encode()).hexdigest()[:24]}.json"


def _reads_files(method: Method[Any]) -> bool:
    texts = [text for value in method.describe().values() for text in (value if isinstance(value, list) else [value])]
    return any(isinstance(text, str) and ("/" in text or Path(text).exists()) for text in texts)


@cache
def _code() -> str:
    """Hash of all that is run dry. About 20 ms for the whole package; which of its files count need not be known then."""
    # What is run dry is their code as well as ours.
    digest = hashlib.sha256(f"{version('torch')} {version('transformers')}".encode())
    for path in sorted(PACKAGE.rglob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def read_dry_runs(path: Path | None) -> dict[str, object]:
    """What is known of an adapter; empty if nothing is."""
    try:
        stored = json.loads(path.read_text(encoding="utf8")) if path is not None else {}
        return {key: _from_json(value) for key, value in stored.items()}
    except (OSError, ValueError, KeyError, TypeError):  # not there yet, or not ours: it is run dry again
        return {}


def write_dry_runs(path: Path | None, known: Mapping[str, Any]) -> None:
    """Keeps what is known of an adapter."""
    if path is None:
        return
    try:
        text = json.dumps({key: _to_json(value) for key, value in known.items()})
        write_atomically(path, text.encode(), durable=False)
    except OSError:  # a cache that cannot be written costs time only
        return


def _to_json(value: Any) -> Any:
    """A `PassCost`, `Work`, bytes by part, or a tuple of them."""
    if isinstance(value, PassCost):
        return {"memory": dict(value.memory), "work": _to_json(value.work)}
    if isinstance(value, Work):
        return [[k.kind, k.dtype, k.flops, k.moved_bytes, count] for k, count in value.calls.items()]
    if isinstance(value, tuple):
        return {"tuple": [_to_json(one) for one in value]}
    return {"bytes": dict(value)}


def _from_json(stored: Any) -> Any:
    if isinstance(stored, list):
        return Work({Kernel(kind, dtype, flops, moved): count for kind, dtype, flops, moved, count in stored})
    if "tuple" in stored:
        return tuple(_from_json(one) for one in stored["tuple"])
    return stored["bytes"] if "bytes" in stored else PassCost(stored["memory"], _from_json(stored["work"]))
