"""A method's page, from its docstring, its config, its formula and the published results."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from functools import cache
from typing import TYPE_CHECKING, Any

from dollartune import format as numbers
from dollartune.errors import UserError
from dollartune.methods.registry import methods
from dollartune.methods.space import space_in_words
from dollartune.pages.picture import method_picture
from dollartune.pages.reference import cell, settings_table

if TYPE_CHECKING:
    from dollartune.methods.base import Method

EXAMPLES = {
    "tiny-decoder": "tiny-decoder",
    "facebook/opt-125m": "OPT-125m",
    "google/flan-t5-xl": "FLAN-T5-XL",
    "tiny-encoder": "tiny-encoder",
    "google/vit-base-patch16-224-in21k": "ViT-base",
}
"""Backbones that parameters are counted on: one of each kind, two decoders."""
BRANCHES = {
    "addition": "adds something to the model",
    "specification": "trains some of what is there",
    "reparameterization": "writes the change in a smaller form",
    "in_context": "changes the prompt alone",
    "baseline": "answers without the backbone",
}
# A screenful: the page is about the method, the tables are in `dollartune.evidence`.
MOST_ROWS = 12
"""Published figures on a page."""


def method_page(cls: type[Method[Any]]) -> str:
    """The page in Markdown: picture, equation, settings, counts, where it works, published figures."""
    name = cls.name
    text = inspect.cleandoc(cls.__doc__ or "")
    picture = inspect.cleandoc(inspect.getmodule(cls).__doc__ or "") if _own_module(cls) else ""
    also = f" Also called {', '.join(f'`{alias}`' for alias in cls.aliases)}." if cls.aliases else ""
    parts = [
        f"# {name}\n",
        f"It {BRANCHES[cls.branch]} ({cls.branch.replace('_', '-')}).{also}\n",
        f'<div class="picture">{method_picture(_roles(cls), f"What {name} edits, with its default settings")}</div>\n',
        "Filled: what it edits with its default settings.\n",
        "## What it computes\n",
        _paragraphs(text),
    ]
    if picture:
        parts += ["```text", picture, "```\n"]
    parts += ["## Settings\n", settings_table(cls.Config)]
    if cls.search:
        ranges = "".join(f"| `{key}` | {cell(space_in_words(space))} |\n" for key, space in cls.search.items())
        parts += ["A search varies:\n", f"| setting | range |\n|---|---|\n{ranges}"]
    parts += ["## Trained parameters\n", _counts(cls), "## Where it works\n", _where(cls)]
    published = _published(name)
    if published:
        parts += ["## Published results\n", published]
    parts.append(f"\n`dollartune methods show {name}` prints the same in a terminal.\n")
    return "\n".join(parts)


def methods_index() -> str:
    """A table of all methods, by branch."""
    lines = ["# Methods\n", "Each page is made from the method's own docstring, settings and formula.\n"]
    for branch, what in BRANCHES.items():
        mine = [cls for cls in methods().values() if cls.branch == branch]
        if not mine:
            continue
        lines += [
            f"## {branch.replace('_', '-').capitalize()}: {what}\n",
            "| method | what | mergeable | peft |",
            "|---|---|---|---|",
        ]
        for cls in mine:
            first = inspect.cleandoc(cls.__doc__ or "").split("\n\n")[0].replace("\n", " ")
            peft = cls.capabilities.peft_type or "-"
            lines.append(
                f"| [{cls.name}]({cls.name}.md) | {cell(first)} | {'yes' if cls.capabilities.mergeable else 'no'} | {peft} |"
            )
        lines.append("")
    return "\n".join(lines)


def _own_module(cls: type[Method[Any]]) -> bool:
    """Whether the module's docstring is about this class (several methods may share a file)."""
    module = inspect.getmodule(cls)
    # By the first four letters: the picture belongs to the method that its docstring begins with, which names it in full.
    return module is not None and (module.__doc__ or "").lower().startswith(cls.name.replace("_", " ")[:4])


def _paragraphs(text: str) -> str:
    """A docstring as Markdown: indented lines are formulas, `Source:` is set apart."""
    done = []
    for paragraph in text.split("\n\n"):
        lines = paragraph.splitlines()
        if all(line.startswith("    ") for line in lines):
            done.append("```text\n" + inspect.cleandoc(paragraph) + "\n```\n")
        elif paragraph.startswith("Source:"):
            done.append(f"**Source.** {_escaped(paragraph.removeprefix('Source:').strip())}\n")
        else:
            done.append(f"{_escaped(paragraph)}\n")
    return "\n".join(done)


def _escaped(text: str) -> str:
    return (
        text.replace("<", "&lt;").replace("*", r"\*").replace("_", r"\_")
        if "`" not in text
        else text.replace("<", "&lt;")
    )


@cache
def _anatomy(backbone: str) -> Any:
    from dollartune.backbones.loading import anatomy_of, empty_model

    return anatomy_of(empty_model(backbone))


def _sites(cls: type[Method[Any]], backbone: str) -> Any:
    """The sites that a method edits with its defaults.

    Raises:
        UserError: it has no meaning there, or needs settings.
    """
    method = cls()
    method.check(_anatomy(backbone))
    return method.sites(_anatomy(backbone))


def _roles(cls: type[Method[Any]]) -> set[str]:
    """Roles that a method edits on the first backbone where it has a meaning."""
    if not cls.capabilities.trains:
        return set()
    # The first that the method can edit, in an order that begins with decoders: what most readers tune.
    for backbone in EXAMPLES:
        try:
            return {site.role for site in _sites(cls, backbone)}
        except UserError:
            continue
    return set()


def _counts(cls: type[Method[Any]]) -> str:
    """Parameters on well-known backbones, by the method's formula and with its default settings."""
    if not cls.capabilities.trains:
        return "None: nothing is trained.\n"
    rows = []
    for backbone, shown in EXAMPLES.items():
        try:
            sites = _sites(cls, backbone)
            method = cls()
            total = sum(method.count(site) for site in sites) + method.count_shared(sites, _anatomy(backbone))
        except UserError:
            continue
        # Of the whole backbone with its embeddings.
        share = total / _anatomy(backbone).at("model")[0].parameters
        rows.append(f"| {shown} | {len(sites)} | {total:,} | {numbers.percent(share)} |")
    if not rows:
        return "It depends on its settings: `dollartune count`.\n"
    return "\n".join(["| backbone | modules | parameters | of the model |", "|---|---:|---:|---:|", *rows, ""])


def what_it_can(cls: type[Method[Any]]) -> Mapping[str, str]:
    """Where a method works and what may be done with its adapters, in words."""
    can = cls.capabilities
    return {
        "kinds of backbone": ", ".join(kind.replace("_", "-") for kind in cls.backbone_kinds),
        "edits": ", ".join(cls.kinds) or "the prompt",
        "can be merged into the weights": "exactly" if can.mergeable else "no",
        "may share a batch with other adapters": "yes" if can.mixed_rows else "no",
        "a new adapter changes nothing": "yes" if can.identity else "no",
        "peft": can.peft_type or "not in its format",
        "vLLM": "yes" if can.vllm else "after merging" if can.mergeable and can.trains else "no",
    }


def _where(cls: type[Method[Any]]) -> str:
    rows = "".join(f"| {key} | {cell(value)} |\n" for key, value in what_it_can(cls).items())
    return f"| property | value |\n|---|---|\n{rows}"


def _published(name: str) -> str:
    """Published scores of the method, as evidence has them."""
    from dollartune.evidence import findings, tables

    # Scores of quality; costs and counts are in tables of their own.
    shown = {"accuracy", "exact_match", "rouge_l"}
    scores = [finding for finding in findings(method=name) if finding.metric in shown]
    if not scores:
        return ""
    rows = [
        f"| {f.model} | {f.data} | {f.n_examples or '-'} | {f.metric.replace('_', ' ')} | {f.value:g} "
        f"| {cell(tables()[f.table].citation)} |"
        for f in scores[:MOST_ROWS]
    ]
    more = f"\n{len(scores) - MOST_ROWS} more are in `dollartune.evidence`.\n" if len(scores) > MOST_ROWS else ""
    head = ["| model | data | rows | measure | score | source |", "|---|---|---:|---|---:|---|"]
    return "\n".join([*head, *rows, ""]) + more
