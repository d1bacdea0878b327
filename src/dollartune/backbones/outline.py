"""What can be said of a backbone from its config alone: its kind, what it was made for, and where its sites are.

Reading a config takes transformers, and finding the sites takes its model classes: two to five seconds of importing, for a few
numbers that do not change. So what was read of a directory is kept in the cache folder, under a hash of everything that
decides it, and a study file is checked without either.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

from dollartune.backbones.anatomy import Anatomy, BackboneKind, Family, Part, Site
from dollartune.backbones.families import families, is_from_file
from dollartune.backbones.kind import Objective, default_objective, kind_of, outer_note
from dollartune.backbones.loading import anatomy_of, empty_model, read_shape
from dollartune.backbones.locate import resolve
from dollartune.backbones.positions import position_limit
from dollartune.backbones.stored_names import stored_names
from dollartune.cache import cache_directory
from dollartune.files import write_atomically


@dataclass(frozen=True)
class Outline:
    """A backbone's kind, and what it does where a study does not say."""

    kind: BackboneKind
    objective: Objective
    notes: tuple[str, ...] = ()
    """What a user should know of how it is read."""
    positions: int | None = None
    """Most tokens of a row, virtual ones included."""


def outline_of(name: str, trust_remote_code: bool = False) -> Outline:
    """Kind and objective of a backbone; loads no weights.

    Raises:
        UserError: there is no such backbone, or its config cannot be read.
    """
    path = _cache_file(name, "outline", trust_remote_code)
    if (stored := _read(path)) is not None:
        return Outline(**_tuples(stored))
    config = read_shape(name, trust_remote_code)
    note = outer_note(config)
    notes = () if note is None else (f"{name}: {note}",)
    outline = Outline(kind_of(config), default_objective(config), notes, position_limit(config))
    _write(path, asdict(outline))
    return outline


def anatomy_without_weights(name: str, objective: Objective, trust_remote_code: bool = False) -> Anatomy:
    """Where the sites of a backbone are; loads no weights.

    Raises:
        UserError: as `loading.anatomy_of`.
    """
    # The same config may belong to checkpoints with a pooler and without.
    tensors = sorted(stored_names(name)) if objective == "classification" else ()
    path = _cache_file(name, f"{objective} {tensors}", trust_remote_code)
    if (stored := _read(path)) is not None:
        return _from_json(stored)
    anatomy = anatomy_of(empty_model(name, objective, trust_remote_code))
    family = anatomy.family
    if is_from_file(family):
        # And it is read faster than a cache is looked up.
        return anatomy  # a file may be another one at the next call
    if families().get(family.model_types[0]) is family:
        _write(path, {**_to_json(anatomy), "family": family.model_types[0]})
    elif family.guessed:  # read off the structure, which takes passes; its stacks are in the sites
        facts = {field: getattr(family, field) for field in _FACTS}
        _write(path, {**_to_json(anatomy), "family": facts})
    return anatomy


_FACTS = (
    "model_types",
    "kind",
    "embeddings",
    "heads",
    "attention_interface",
    "guessed",
    "base",
    "notes",
    "refusals",
    "keeps_states",
    "counts_padding",
    "writes_from_embeddings",
    "generates",
    "streams",
    "latents",
    "masks_without_cache",
    "tokens_first",
)
"""Of a family that was read off a structure, what methods ask for."""


def _to_json(anatomy: Anatomy) -> dict[str, object]:
    return {
        "sites": [asdict(site) for site in anatomy.sites],
        "d_model": anatomy.d_model,
        "layer_counts": dict(anatomy.layer_counts),
        "base_prefix": anatomy.base_prefix,
        "notes": list(anatomy.notes),
    }


def _from_json(stored: Mapping[str, Any]) -> Anatomy:
    sites = [Site(**{**site, "part": site["part"] and Part(**site["part"])}) for site in stored["sites"]]
    known = stored["family"]
    family = families()[known] if isinstance(known, str) else Family(stacks={}, **_tuples(known))
    return Anatomy(
        family, tuple(sites), stored["d_model"], stored["layer_counts"], stored["base_prefix"],
        tuple(stored["notes"]),
    )  # fmt: skip


def _tuples(facts: Mapping[str, Any]) -> dict[str, Any]:
    """Lists as the tuples that they were."""
    return {key: tuple(value) if isinstance(value, list) else value for key, value in facts.items()}


def _cache_file(name: str, what: str, trust_remote_code: bool) -> Path | None:
    """Where something about a backbone is kept; None where it is not: code that comes with a model may say anything, and
    a model of the hub may be another one tomorrow."""
    config = Path(resolve(name)) / "config.json"
    if trust_remote_code or not config.is_file():
        return None
    # What transformers makes of a config changes between its versions.
    key = hashlib.sha256(config.read_bytes() + f"{what} {version('transformers')} {_own_code()}".encode())
    return cache_directory() / "outlines" / f"{key.hexdigest()[:20]}.json"


@cache
def _own_code() -> str:
    """Hash of the files that say where sites are, so that what an older version of them found is not used."""
    here = Path(__file__).parent
    digest = hashlib.sha256()
    readers = (
        "anatomy",
        "loading",
        "kind",
        "positions",
        "structure",
        "probing",
        "module_outputs",
        "miniature",
        "outline",
        "own_head",
        "layer_roles",
        "token_table",
        "stored_names",
    )
    for path in [*(here / f"{name}.py" for name in readers), *sorted((here / "families").glob("*.py"))]:
        digest.update(path.read_bytes())
    return digest.hexdigest()


def _read(path: Path | None) -> dict[str, Any] | None:
    try:
        stored: dict[str, Any] = json.loads(path.read_text(encoding="utf8")) if path is not None else {}
    except (OSError, ValueError):  # not there yet, or not ours: it is read anew
        return None
    return stored or None


def _write(path: Path | None, values: Mapping[str, Any]) -> None:
    if path is None:
        return
    try:
        write_atomically(path, json.dumps(values).encode(), durable=False)
    except OSError:  # a cache that cannot be written costs time only
        return
