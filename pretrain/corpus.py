"""Text to pretrain on: docstrings of installed libraries and the prose of source distributions.

What stays out: every module that `dollartune.tasks.docstrings.split_of` puts into validation or test, whatever library
it belongs to, and every paragraph equal to a summary of the demo's validation or test rows (libraries copy text between
modules). A module in validation serves as held-out text for perplexity; test modules are not read at all.
"""

from __future__ import annotations

import ast
import gzip
import hashlib
import html
import json
import random
import re
import sysconfig
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from dollartune.tasks.docstrings import Documented, documented_in, harvest, library_root, module_files, split_of

DOCSTRING_CHARACTERS = 700  # parameter lists are long and alike; the beginning says most
_WORD = re.compile(r"\W+")
_PARAGRAPH_BREAK = re.compile(r"\n\s*\n")


@dataclass
class Corpus:
    """Documents by kind; `functions` are the documented functions that the task-like documents are made of."""

    train: list[str] = field(default_factory=list)
    heldout: list[str] = field(default_factory=list)
    functions: list[Documented] = field(default_factory=list)


class Guard:
    """Drops repeated paragraphs and the demo's validation and test summaries."""

    def __init__(self) -> None:
        rows = harvest()
        self.forbidden = {normalized(item.summary) for split in ("validation", "test") for item in rows[split]}
        self.seen: set[int] = set()

    def passes(self, text: str) -> bool:
        """Whether this paragraph is new and is not held-out text."""
        plain = normalized(text)
        if any(plain.startswith(prefix) for prefix in self.forbidden_starts(plain)):
            return False
        key = hash(plain)
        if key in self.seen:
            return False
        self.seen.add(key)
        return True

    def forbidden_starts(self, plain: str) -> Iterator[str]:
        """Held-out summaries that begin like `plain`, looked up by every prefix of up to forty words."""
        words = plain.split()
        for length in range(3, min(len(words), 41) + 1):
            prefix = " ".join(words[:length])
            if prefix in self.forbidden:
                yield prefix


def normalized(text: str) -> str:
    """Lower-case words only, so that markup and punctuation do not hide a copy."""
    return _WORD.sub(" ", text.lower()).strip()


def pretraining_modules(library: str, root: Path | None = None) -> list[tuple[str, Path]]:
    """The modules of a library that pretraining may read: those of the train split."""
    return [(name, path) for name, path in module_files(library, root) if split_of(name) == "train"]


def module_document(module: str, source: str, guard: Guard) -> str:
    """A module as its dotted name, then each signature with the beginning of its docstring."""
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError, RecursionError):
        return ""
    parts = []
    opening = shortened(ast.get_docstring(tree) or "", guard)
    if opening:
        parts.append(f'"""{opening}"""')
    for node in ast.walk(tree):
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) or node.name.startswith("__"):
            continue
        text = shortened(ast.get_docstring(node) or "", guard)
        if len(text.split()) < 4:
            continue
        if isinstance(node, ast.ClassDef):
            head = f"class {node.name}:"
        else:
            names = [argument.arg for argument in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)]
            head = f"def {node.name}({', '.join(names[:8])}):"
        parts.append(f'{head}\n    """{text}"""')
    return f"# {module}\n" + "\n\n".join(parts) if parts else ""


def shortened(docstring: str, guard: Guard) -> str:
    """The first paragraphs of a docstring that the guard lets through, without examples; empty if the first is not."""
    kept: list[str] = []
    for index, paragraph in enumerate(_PARAGRAPH_BREAK.split(docstring.strip())):
        if not guard.passes(paragraph):
            if index == 0:
                return ""
            continue
        if ">>>" in paragraph or sum(map(len, kept)) + len(paragraph) > DOCSTRING_CHARACTERS:
            break
        kept.append(paragraph)
    text = "\n\n".join(kept)
    return text if text.isascii() or sum(map(str.isascii, text)) > 0.98 * len(text) else ""


def prose(text: str, guard: Guard) -> str:
    """The paragraphs of a documentation page that are sentences: no tables, directives, code or change entries."""
    kept = []
    for paragraph in _PARAGRAPH_BREAK.split(text):
        flat = " ".join(paragraph.split())
        if len(flat.split()) < 10 or flat.startswith(("..", ":", "|", "+", ">>>", "$", "#")):
            continue
        flat = re.sub(r":[a-zA-Z:+-]+:`~?([^`<]*?)(?:\s*<[^`]*>)?`", r"\1", flat)
        flat = re.sub(r"`([^`<]*?)\s*<[^`]*>`_+", r"\1", flat).replace("`", "").replace("**", "")
        letters = sum(character.isalpha() or character == " " for character in flat)
        if letters > 0.88 * len(flat) and guard.passes(flat):
            kept.append(flat)
    return "\n\n".join(kept)


def archive_pages(path: Path) -> Iterator[tuple[str, str]]:
    """Documentation pages (rst, md, txt under a documentation folder) of a source distribution."""
    with tarfile.open(path) as archive:
        for member in archive:
            name = member.name
            inside = re.search(r"/(docs?|doc)/", name) or re.search(r"/README|/howto/", name)
            if not member.isfile() or not inside or not name.endswith((".rst", ".txt", ".md")):
                continue
            if re.search(r"chang|release|whats?_?new|history|news|locale|licen[sc]e", name, flags=re.IGNORECASE):
                continue
            handle = archive.extractfile(member)
            if handle is not None:
                yield name, handle.read().decode("utf-8", errors="replace")


def service_pages(folder: Path) -> Iterator[tuple[str, str]]:
    """The prose of botocore's service descriptions (JSON with HTML in `documentation` keys), one page per service."""
    for path in sorted(folder.glob("data/*/*/service-2.json*")):
        data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        found = re.findall(r'"documentation":\s*"((?:[^"\\]|\\.)*)"', data.decode())
        plain = (html.unescape(re.sub(r"<[^>]+>", " ", json.loads(f'"{item}"'))) for item in found)
        yield path.parts[-3], "\n\n".join(" ".join(item.split()) for item in plain)


def held_out_page(name: str) -> bool:
    """One documentation page in fifty is held out, by the hash of its name without the version."""
    stem = name.split("/", 1)[-1]
    return int(hashlib.sha256(stem.encode()).hexdigest()[:8], 16) % 50 == 0


def build(libraries: list[str], wheels: Path, archives: list[Path], cap_per_library: int) -> Corpus:
    """Reads everything.

    Args:
        libraries: import names; `stdlib` is the standard library.
        wheels: a folder with unpacked wheels of further libraries; all that are there are read.
        archives: source distributions whose documentation pages are read.
        cap_per_library: most characters of docstrings per library, so that the largest do not drown the others.
    """
    guard, corpus = Guard(), Corpus()
    standard = Path(sysconfig.get_paths()["stdlib"])
    roots = {library: standard if library == "stdlib" else library_root(library) for library in libraries}
    roots |= {path.parent.name: path.parent for path in sorted(wheels.glob("*/__init__.py"))}
    for library, root in roots.items():
        size = held = 0
        for module, path in module_files(library, root):
            if "site-packages" in path.relative_to(root).parts:
                continue
            split = split_of(module)
            if (
                split == "test"
                or (split == "train" and size > cap_per_library)
                or (split == "validation" and held > 40_000)
            ):
                continue
            source = path.read_text(encoding="utf-8", errors="replace")
            if split == "validation":
                document = module_document(module, source, OpenGuard())
                corpus.heldout.append(document)
                held += len(document)
                continue
            document = module_document(module, source, guard)
            if document:
                corpus.train.append(document)
                size += len(document)
            for item in documented_in(source, library, module):
                if normalized(item.summary) not in guard.forbidden:
                    corpus.functions.append(item)
        print(f"{library}: {size / 1e6:.2f} M characters, held out {held / 1e6:.2f} M", flush=True)
    sources = [(archive.name, archive_pages(archive)) for archive in archives]
    for label, pages in (*sources, ("botocore services", service_pages(wheels / "botocore"))):
        size = 0
        for name, text in pages:
            if size > (1 if label.startswith("botocore") else 2) * cap_per_library:
                break
            page = prose(text, guard)[:20_000]
            if len(page) < 200:
                continue
            if held_out_page(name):
                corpus.heldout.append(page)
            else:
                corpus.train.append(page)
                size += len(page)
        print(f"{label}: {size / 1e6:.2f} M characters of prose", flush=True)
    corpus.heldout = [document for document in corpus.heldout if document]
    return corpus


class OpenGuard(Guard):
    """Lets everything through: held-out documents are not checked against themselves."""

    def __init__(self) -> None:
        self.forbidden, self.seen = set(), set()


def task_like(
    functions: list[Documented], seed: int, count: int, weights: tuple[int, int, int, int] = (3, 2, 3, 2)
) -> Iterator[str]:
    """Documents that look like indexes, import lines and short questions, made of train modules only.

    Their wording is not that of the demo's prompts: they teach that a line can follow a pattern set by the lines
    before it, that names and summaries belong together, and that questions have yes and no for answers.
    `weights` are those of indexes, import lines, tables and questions.
    """
    draw = random.Random(seed)
    kinds = (_index, _imports, _table, _questions)
    for _ in range(count):
        yield draw.choices(kinds, weights=weights)[0](draw, functions)


def _index(draw: random.Random, functions: list[Documented]) -> str:
    start = draw.randrange(len(functions) - 8)
    rows = functions[start : start + draw.randint(3, 6)]
    return f"{rows[0].module}\n" + "\n".join(f"{row.signature}: {row.summary}" for row in rows)


def _imports(draw: random.Random, functions: list[Documented]) -> str:
    rows = draw.sample(functions, draw.randint(2, 5))
    return "\n".join(
        f"# {row.summary}\nfrom {row.module} import {row.signature.split('(')[0].split('.')[0]}" for row in rows
    )


def _table(draw: random.Random, functions: list[Documented]) -> str:
    rows = draw.sample(functions, draw.randint(4, 8))
    left, right = draw.choice((("- ", " -- "), ("", "\t"), ("* ", " ("), ("Entry: ", "\nPackage: "), ("", "\nfrom ")))
    end = ")" if right == " (" else ""
    separator = draw.choice(("\n", "\n\n"))
    return separator.join(f"{left}{row.summary}{right}{row.library}{end}" for row in rows)


def _questions(draw: random.Random, functions: list[Documented]) -> str:
    lines = []
    for place in draw.sample(range(len(functions)), draw.randint(2, 5)):
        row, true = functions[place], draw.random() < 0.5
        near = place + draw.randint(-40, 40)
        other = row if true else functions[near % len(functions)] if draw.random() < 0.4 else draw.choice(functions)
        true = other is row
        answer = "yes" if true else "no"
        kind = draw.choices(range(4), weights=(3, 3, 1, 3))[0]
        if kind == 0:
            lines.append(f"Is {row.signature.split('(')[0]} this: {other.summary} {answer}")
        elif kind == 1:
            lines.append(f"Q: {other.summary}\nIs that {row.signature}?\nA: {answer}")
        elif kind == 3:
            lines.append(f"{row.signature} -- {other.summary}\nRight? {answer}")
        else:
            inside = "yes" if other.library == row.library else "no"
            lines.append(f"Is {row.signature.split('(')[0]} in {other.library}? {inside}")
    return "\n".join(lines)


def save(corpus: Corpus, folder: Path) -> None:
    """Writes the corpus as JSON lines."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("train", "heldout"):
        with (folder / f"{name}.jsonl").open("w") as handle:
            handle.writelines(json.dumps(document) + "\n" for document in getattr(corpus, name))
    with (folder / "functions.jsonl").open("w") as handle:
        handle.writelines(json.dumps(vars(item)) + "\n" for item in corpus.functions)
