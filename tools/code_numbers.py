"""Numbers about the source: how large it is, what share of it explains, what is untyped, which names are used twice.

    python tools/code_numbers.py                    this tree
    python tools/code_numbers.py --at 6ce6f61       a commit, read with git; nothing is checked out
    python tools/code_numbers.py --by-folder        comment share per folder as well

Comments are counted twice: all lines that hold one, as other tools count, and those that a person reads (`# fmt:`, `# noqa` and
`# type:` are orders to tools).
Docstrings include the strings below fields, which document them.
"""

from __future__ import annotations

import argparse
import ast
import io
import re
import subprocess
import tokenize
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).parents[1]
SOURCE = "src/dollartune"
ORDERS = re.compile(r"#\s*(fmt:|noqa|type:|mypy:|pragma|ruff:)")
FILLERS = ("found", "own", "place", "places")
"""Names that say nothing of what they hold."""


@dataclass
class Numbers:
    """Counts over files."""

    files: int = 0
    lines: int = 0
    blank: int = 0
    docstring: int = 0
    comment: int = 0
    """Lines that hold a comment; the trailing ones are counted in `code` too."""
    comment_for_people: int = 0
    code: int = 0
    untyped_dicts: int = 0
    any_names: int = 0
    fillers: Counter[str] = field(default_factory=Counter)
    """Name -> how often it is bound: assigned, looped over, or taken as an argument."""
    classes: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))

    @property
    def twice(self) -> dict[str, list[str]]:
        """Class name -> files, where more than one defines it."""
        return {name: files for name, files in sorted(self.classes.items()) if len(files) > 1}


def sources(commit: str | None) -> Iterator[tuple[str, str]]:
    """(path, text) of every Python file of the package."""
    if commit is None:
        for path in sorted((ROOT / SOURCE).rglob("*.py")):
            yield str(path.relative_to(ROOT)), path.read_text(encoding="utf8")
        return
    names = _git("ls-tree", "-r", "--name-only", commit, SOURCE).splitlines()
    for name in names:
        if name.endswith(".py"):
            yield name, _git("show", f"{commit}:{name}")


def _git(*arguments: str) -> str:
    return subprocess.run(["git", *arguments], cwd=ROOT, check=True, capture_output=True, text=True).stdout


def add(numbers: Numbers, name: str, text: str) -> None:
    """Counts one file."""
    lines = text.splitlines()
    tree = ast.parse(text)
    docstring = {
        line
        for node in ast.walk(tree)
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
        for line in range(node.lineno, (node.end_lineno or node.lineno) + 1)
    }
    comment, for_people, alone = set(), set(), set()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT:
            row = token.start[0]
            comment.add(row)
            if not ORDERS.match(token.string):
                for_people.add(row)
            if not lines[row - 1][: token.start[1]].strip():
                alone.add(row)
    blank = {row for row, line in enumerate(lines, 1) if not line.strip() and row not in docstring}
    numbers.files += 1
    numbers.lines += len(lines)
    numbers.blank += len(blank)
    numbers.docstring += len(docstring)
    numbers.comment += len(comment)
    numbers.comment_for_people += len(for_people)
    numbers.code += len(lines) - len(blank | docstring | alone)
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef):
            numbers.classes[node.name].append(name)
        elif isinstance(node, ast.Name) and node.id == "Any":
            numbers.any_names += 1
        elif isinstance(node, ast.Subscript) and ast.unparse(node) == "dict[str, Any]":
            numbers.untyped_dicts += 1
        bound = (
            node.id
            if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)
            else node.arg
            if isinstance(node, ast.arg)
            else None
        )
        if bound in FILLERS:
            numbers.fillers[bound] += 1


def counted(commit: str | None = None) -> Numbers:
    """Numbers of a tree."""
    numbers = Numbers()
    for name, text in sources(commit):
        add(numbers, name, text)
    return numbers


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--at", metavar="COMMIT", help="count a commit in place of the working tree")
    parser.add_argument("--by-folder", action="store_true", help="comment share and fillers per folder as well")
    arguments = parser.parse_args()
    whole = counted(arguments.at)

    def share(count: int) -> str:
        return f"{count:,} ({count / whole.lines:.1%})"

    print(f"files                    {whole.files:,}")
    print(f"lines                    {whole.lines:,}")
    print(f"  code                   {share(whole.code)}")
    print(f"  docstrings             {share(whole.docstring)}")
    print(f"  with a comment         {share(whole.comment)}")
    print(f"    for people           {share(whole.comment_for_people)}")
    print(f"  blank                  {share(whole.blank)}")
    print(f"Any                      {whole.any_names:,}")
    print(f"dict[str, Any]           {whole.untyped_dicts:,}")
    print("bound fillers            " + ", ".join(f"{name} {whole.fillers[name]}" for name in FILLERS))
    print(f"class names twice        {len(whole.twice)}")
    for name, files in whole.twice.items():
        print(f"  {name:22} " + ", ".join(file.removeprefix(f"{SOURCE}/") for file in files))
    if arguments.by_folder:
        folders: dict[str, Numbers] = defaultdict(Numbers)
        for name, text in sources(arguments.at):
            inside = name.removeprefix(f"{SOURCE}/")
            add(folders[inside.split("/")[0] if "/" in inside else "(top)"], name, text)
        print("folder                   lines  comments  for people  found")
        for folder, numbers in sorted(folders.items()):
            print(
                f"  {folder:20} {numbers.lines:7,} {numbers.comment / max(1, numbers.lines):8.1%} "
                f"{numbers.comment_for_people / max(1, numbers.lines):11.1%} {numbers.fillers['found']:6}"
            )


if __name__ == "__main__":
    main()
