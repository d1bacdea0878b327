"""Three text tasks from the documentation of the libraries that are installed anyway.

The demo needs text on a machine without a network: docstrings of the libraries that DollarTune depends on are there,
thousands of them, written by people. They are read with `ast` (nothing is imported), each once, and split **by
module**: a stable hash of the module's dotted name says whether its functions train, validate or test. The embedded
backbones were pretrained on text of the same libraries, without the modules of the validation and test splits
(`pretrain/` keeps them out with the same `split_of`).

| task | prompt -> answer |
|---|---|
| `demo_library` | the summary of a function (and its signature, where a prompt asks for it) -> its library |
| `demo_match` | a signature and a summary -> yes or no, as in BoolQ |
| `demo_summary` | a signature -> the summary |

Harvesting takes seconds and is kept in the cache directory under a name made of the libraries' versions.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.metadata
import importlib.util
import json
import random
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from dollartune.cache import cache_directory, keep
from dollartune.errors import UserError
from dollartune.tasks.base import Example, SplitName, Task, Template

LIBRARIES: dict[str, str] = {
    "networkx": "networkx",
    "numpy": "numpy",
    "pandas": "pandas",
    "scipy": "scipy",
    "sklearn": "scikit-learn",
    "sympy": "sympy",
    "torch": "torch",
    "transformers": "transformers",
}
"""Import name -> distribution name. All are installed with DollarTune; the import name is the label."""

# 250 test rows: an accuracy near 0.8 is known to about 5 points either way, and the demo stays within minutes.
LIMITS: dict[SplitName, int] = {"train": 1000, "validation": 250, "test": 250}
"""Most functions per library and split."""

_PER_MODULE = 40  # one huge module must not fill a split
_FORMAT = 4  # raise when the harvest changes, so that old cache files are not read
_SKIPPED = {"tests", "test", "testing", "_vendor", "externals", "externals_vendored", "conftest"}
_GIVEAWAY = re.compile(
    r"networkx|numpy|pandas|scipy|scikit|sklearn|sympy|torch|transformers|hugging ?face", flags=re.IGNORECASE
)
# Of a signature beside a summary: what follows are arguments, which cost more to read than they tell.
_SIGNATURE_CHARACTERS = 80
# Sphinx roles (:func:`~torch.nn.Linear`): the last part of the name is what a reader sees.
_ROLE = re.compile(r":[a-zA-Z:+]+:`~?([^`<]*?)(?:\s*<[^`]*>)?`")
# Two characters before the stop, and a capital after it: `e.g.` and `1.5` end no sentence.
_SENTENCE_END = re.compile(r"(?<=[a-z0-9)\]`'\"]{2}\.)\s+(?=[A-Z`])")


@dataclass(frozen=True)
class Documented:
    """One documented function or class."""

    library: str
    module: str
    signature: str
    """Qualified name and argument names, for example `KDTree.query(x, k, eps)`."""
    summary: str
    """First sentence of the docstring, markup removed."""


def split_of(module: str) -> SplitName:
    """The split of a module, by a stable hash of its dotted name: 70 % train, 15 % validation, 15 % test."""
    # By module, not by function: functions of one module share words and arguments, which would give test rows away. By hash,
    # so that a new version of a library moves no module to another split.
    bucket = int(hashlib.sha256(module.encode()).hexdigest()[:8], 16) % 100
    return "train" if bucket < 70 else "validation" if bucket < 85 else "test"


def library_root(library: str) -> Path:
    """The folder of an installed library, found without importing it.

    Raises:
        UserError: the library is not installed.
    """
    spec = importlib.util.find_spec(library)
    if spec is None or spec.origin is None:
        raise UserError(
            f"the demo reads the docstrings of {library!r}, which is not installed.",
            f"Run: python -m pip install {LIBRARIES.get(library, library)}",
        )
    return Path(spec.origin).parent


def module_files(library: str, root: Path | None = None) -> list[tuple[str, Path]]:
    """Every module of a library as (dotted name, file), in the order of the hash of its name; no tests."""
    root = root or library_root(library)
    modules = []
    for path in root.rglob("*.py"):
        parts = path.relative_to(root).with_suffix("").parts
        if any(part in _SKIPPED or part.startswith("test_") for part in parts):
            continue
        names = parts[:-1] if parts[-1] == "__init__" else parts
        modules.append((".".join((library, *names)), path))
    # Other digits of the hash than `split_of` uses, or the first modules in order would all be of one split.
    return sorted(modules, key=lambda item: hashlib.sha256(item[0].encode()).hexdigest()[8:])


def summary_of(docstring: str) -> str | None:
    """First sentence of a docstring in plain words; None when it has no usable one (4 to 40 words, one paragraph)."""
    paragraph = docstring.strip().split("\n\n", 1)[0]
    text = " ".join(paragraph.split())
    # Examples, directives, decorators, tables and lists: markup in place of a sentence.
    if text.startswith((">>>", "..", "@", "|", "-", ":", "[[")) or "::" in text.replace("::`", ""):
        return None
    text = _ROLE.sub(lambda match: match.group(1).rsplit(".", 1)[-1], text)
    # Markdown links, as transformers writes them.
    text = re.sub(r"\[`?~?([\w.]+)`?\](\([^)]*\))?", r"\1", text)
    text = _SENTENCE_END.split(text.replace("`", "").replace("*", ""), maxsplit=1)[0].strip()
    words = text.split()
    # Shorter summaries say nothing about their library, longer ones are lists or formulas that were read as one sentence.
    if not 4 <= len(words) <= 40 or not text.isascii() or not text[0].isalpha() or len(text) > 240:
        return None
    if text.lower().startswith(("deprecated", "args:", "parameters")) or text.endswith(":"):
        return None
    if re.match(r"\w+ ?\([^)]*\) ?:", text):  # an argument list without a sentence before it
        return None
    return text


def documented_in(source: str, library: str, module: str) -> Iterator[Documented]:
    """Public functions, classes and methods of one module that have a usable summary, in source order.

    Source that does not parse as this Python version yields nothing.
    """
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError, RecursionError):
        return
    yield from _walk(tree.body, (), library, module)


def _walk(body: Sequence[ast.stmt], outer: tuple[str, ...], library: str, module: str) -> Iterator[Documented]:
    for node in body:
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) or node.name.startswith("_"):
            continue
        docstring = ast.get_docstring(node)
        summary = summary_of(docstring) if docstring else None
        if summary is not None:
            yield Documented(library, module, signature_of(node, outer), summary)
        if isinstance(node, ast.ClassDef):
            yield from _walk(node.body, (*outer, node.name), library, module)


def signature_of(node: ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef, outer: tuple[str, ...] = ()) -> str:
    """Qualified name with argument names only (a class shows those of its `__init__`), at most eight of them."""
    function: ast.stmt | None = node
    if isinstance(node, ast.ClassDef):
        inits = (item for item in node.body if isinstance(item, ast.FunctionDef) and item.name == "__init__")
        function = next(inits, None)
    names: list[str] = []
    if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef):
        arguments = function.args
        names = [item.arg for item in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs)]
        names = [name for name in names if name not in ("self", "cls")]
    # Eight arguments tell a function apart; some of scipy's have thirty, which would fill the prompt.
    shown = ", ".join(names[:8]) + (", ..." if len(names) > 8 else "")
    return f"{'.'.join((*outer, node.name))}({shown})"


def harvest(libraries: Sequence[str] = tuple(LIBRARIES)) -> dict[SplitName, list[Documented]]:
    """Reads the docstrings of the installed libraries, or the cached result for the same versions.

    A summary is kept once in the whole harvest, so none occurs in two splits; one that names any of the libraries is
    dropped, since it would give the answer of `demo_library` away.
    """
    # A cache per set of versions: docstrings change with them, and a study's rows must be those of what is installed.
    versions = {library: importlib.metadata.version(LIBRARIES[library]) for library in libraries}
    key = hashlib.sha256(json.dumps([_FORMAT, LIMITS, versions], sort_keys=True).encode()).hexdigest()[:16]
    path = cache_directory() / f"docstrings-{key}.json"
    cached = _read_cache(path)
    if cached is not None:
        return cached
    rows: dict[SplitName, list[Documented]] = {"train": [], "validation": [], "test": []}
    seen: set[str] = set()
    for library in libraries:
        _harvest_library(library, rows, seen)
    text = json.dumps({split: [asdict(row) for row in items] for split, items in rows.items()})
    # Not flushed to the disk: what a crash loses is harvested again.
    keep(path, text.encode())
    return rows


def _harvest_library(library: str, rows: dict[SplitName, list[Documented]], seen: set[str]) -> None:
    left = dict(LIMITS)
    for module, path in module_files(library):
        split = split_of(module)
        # Reading stops here: parsing all of torch and sympy takes half a minute.
        if not any(left.values()):
            return
        if not left[split]:
            continue
        taken = 0
        for item in documented_in(path.read_text(encoding="utf-8", errors="replace"), library, module):
            # Punctuation and case do not make a summary another one: near copies would stand in two splits.
            words = re.sub(r"\W+", " ", item.summary.lower()).strip()
            if words in seen or _GIVEAWAY.search(item.summary) or taken == _PER_MODULE or not left[split]:
                continue
            seen.add(words)
            rows[split].append(item)
            taken += 1
            # Counted per library: else the largest one would fill a split and one class would be most of it.
            left[split] -= 1


def _read_cache(path: Path) -> dict[SplitName, list[Documented]] | None:
    if not path.is_file():
        return None
    try:
        stored = json.loads(path.read_text())
        splits: tuple[SplitName, ...] = ("train", "validation", "test")
        return {split: [Documented(**row) for row in stored[split]] for split in splits}
    except (ValueError, KeyError, TypeError):
        path.unlink()  # a damaged cache is only a lost speed-up: harvest again
        return None


def _library_rows() -> Mapping[SplitName, Sequence[Example]]:
    return {
        split: [
            Example(
                f"{split}/{index}",
                {"summary": item.summary, "signature": _GIVEAWAY.sub("_", item.signature)[:_SIGNATURE_CHARACTERS]},
                label=item.library,
            )
            for index, item in enumerate(items)
        ]
        for split, items in harvest().items()
    }


def _match_rows() -> Mapping[SplitName, Sequence[Example]]:
    """Half true pairs; for the other half the summary of another function of the same split, of any library."""
    result: dict[SplitName, Sequence[Example]] = {}
    for split, items in harvest().items():
        # A generator per split, so that the size of one does not move the pairs of the next.
        draw = random.Random(f"demo_match/{split}")
        rows = []
        for index, item in enumerate(items):
            true = draw.random() < 0.5
            other = item
            # A wrong pair must not be a right one by chance.
            while not true and other is item:
                other = draw.choice(items)
            fields = {"function": f"{item.library}.{item.signature}", "summary": other.summary}
            rows.append(Example(f"{split}/{index}", fields, label="yes" if true else "no"))
        result[split] = rows
    return result


def _summary_rows() -> Mapping[SplitName, Sequence[Example]]:
    return {
        split: [
            Example(
                f"{split}/{index}",
                {"signature": item.signature, "library": item.library},
                target=item.summary,
                references=(item.summary,),
            )
            for index, item in enumerate(items)
        ]
        for split, items in harvest().items()
    }


_SOURCE = "Docstrings of the installed libraries, split by module; each under its library's own permissive licence."


def demo_library() -> Task:
    """Which of eight libraries does this summary come from?"""
    return Task(
        name="demo_library",
        kind="classification",
        load=_library_rows,
        template=Template("Summary: {summary}\nLibrary:"),
        label_words={library: library for library in LIBRARIES},
        metric="accuracy",
        metrics=("balanced_accuracy", "f1"),
        extra_templates=(
            Template("{summary}\nThis is a function of the library"),
            Template("Question: which library documents a function as follows?\n{summary}\nAnswer:"),
        ),
        description="The library that a one-sentence function summary comes from, of eight.",
        source=_SOURCE,
    )


def demo_match() -> Task:
    """Does this summary describe this function? Answered yes or no, as in BoolQ."""
    return Task(
        name="demo_match",
        kind="classification",
        load=_match_rows,
        template=Template("Function: {function}\nSummary: {summary}\nDoes the summary describe the function?\nAnswer:"),
        label_words={"no": "no", "yes": "yes"},
        metric="accuracy",
        metrics=("balanced_accuracy", "matthews"),
        extra_templates=(
            Template("{function}\n{summary}\nQuestion: is this the right description, yes or no?\nAnswer:"),
            Template("Description: {summary}\nDoes it belong to {function}?\nAnswer:"),
        ),
        description="Whether a summary belongs to a function or to another one.",
        source=_SOURCE,
    )


def demo_summary() -> Task:
    """Write a function's summary from its signature."""
    return Task(
        name="demo_summary",
        kind="generation",
        load=_summary_rows,
        template=Template("Library: {library}\nFunction: {signature}\nSummary:"),
        metric="rougeL",
        metrics=("rouge1", "rouge2", "bleu", "chrf"),
        extra_templates=(Template("Describe the function {signature} of {library} in one sentence:"),),
        max_answer_tokens=48,
        description="The one-sentence summary of a function, from its qualified name and argument names.",
        source=_SOURCE,
    )


TASKS: dict[str, Callable[[], Task]] = {
    "demo_library": demo_library,
    "demo_match": demo_match,
    "demo_summary": demo_summary,
}
"""What this module adds to the task registry."""
