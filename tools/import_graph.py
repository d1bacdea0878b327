"""Who imports whom in the package: the deepest chain, the cycles, and the arrows between folders.

    python tools/import_graph.py                 what `make lint` looks at; exits with 1 where a limit is broken
    python tools/import_graph.py --folders       also every arrow between two folders, with the number of imports
    python tools/import_graph.py --of FILE       what a file imports, and who imports it

An import is counted wherever it stands, also inside a function: a lazy import delays the cost of loading a module, it does
not make two files independent. Imports for types alone (`if TYPE_CHECKING:`) are counted apart: they cost nothing when the
program runs, and are shown because they too must be read together.
"""

from __future__ import annotations

import argparse
import ast
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from pathlib import Path

SOURCE = Path(__file__).parents[1] / "src"
PACKAGE = "dollartune"
DEEPEST = 12
"""Files in the longest chain of imports at the top of modules: as many as a reader may have to open to follow one name.
Optuna has 14, tinker-cookbook 14, einops 5; we had 21."""

Edges = Mapping[str, set[str]]


def modules() -> dict[str, Path]:
    """Module name without the package -> file; a package's own file has the folder's name."""
    found = {}
    for path in sorted((SOURCE / PACKAGE).rglob("*.py")):
        parts = path.relative_to(SOURCE / PACKAGE).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        if name:
            found[name] = path
    return found


def imports(path: Path, known: Iterable[str]) -> Iterator[tuple[str, str]]:
    """(module, how) of every import of our own: how is `top`, `lazy` or `types`."""
    names = set(known)

    def target(module: str, name: str) -> str | None:
        inside = f"{module}.{name}" if module else name
        return inside if inside in names else module if module in names else None

    def visit(node: ast.AST, how: str) -> Iterator[tuple[str, str]]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.ImportFrom) and not child.level and child.module:
                package, _, module = child.module.partition(".")
                if package == PACKAGE:
                    for alias in child.names:
                        if (found := target(module, alias.name)) is not None:
                            yield found, how
            elif isinstance(child, ast.Import):
                for alias in child.names:
                    package, _, module = alias.name.partition(".")
                    if package == PACKAGE and module in names:
                        yield module, how
            elif isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
                yield from visit(child, "types")
            elif isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda) and how == "top":
                yield from visit(child, "lazy")
            else:
                yield from visit(child, how)

    yield from visit(ast.parse(path.read_text(encoding="utf8")), "top")


def graph(kinds: Iterable[str]) -> dict[str, set[str]]:
    """Module -> what it imports in one of these ways."""
    files, wanted = modules(), set(kinds)
    return {
        name: {module for module, how in imports(path, files) if how in wanted and module != name}
        for name, path in files.items()
    }


def cycles(edges: Edges) -> list[list[str]]:
    """Strongly connected parts of more than one module (Tarjan 1972), largest first."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(node: str) -> None:
        index[node] = low[node] = len(index)
        stack.append(node)
        for other in sorted(edges[node]):
            if other not in index:
                visit(other)
                low[node] = min(low[node], low[other])
            elif other in stack:
                low[node] = min(low[node], index[other])
        if low[node] == index[node]:
            part = []
            while True:
                part.append(stack.pop())
                if part[-1] == node:
                    break
            if len(part) > 1:
                found.append(sorted(part))

    for node in edges:
        if node not in index:
            visit(node)
    return sorted(found, key=lambda part: (-len(part), part))


def deepest(edges: Edges) -> list[str]:
    """The longest chain of imports. Modules of a cycle count once each, in the order in which they are met."""

    @cache
    def below(node: str) -> tuple[str, ...]:
        best: tuple[str, ...] = ()
        active.add(node)
        for other in sorted(edges[node]):
            if other not in active and len(chain := below(other)) > len(best):
                best = chain
        active.discard(node)
        return (node, *best)

    active: set[str] = set()
    return list(max((below(node) for node in edges), key=len))


def folder(module: str) -> str:
    """The folder of a module: one level, as the contract speaks of it."""
    return module.split(".")[0]


def between_folders(edges: Edges) -> Counter[tuple[str, str]]:
    """How many imports there are from one folder to another."""
    pairs = ((folder(name), folder(other)) for name, others in edges.items() for other in others)
    return Counter(pair for pair in pairs if pair[0] != pair[1])


def folder_edges(edges: Edges) -> dict[str, set[str]]:
    pairs = between_folders(edges)
    return {name: {b for a, b in pairs if a == name} for name in sorted({folder(module) for module in edges})}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folders", action="store_true")
    parser.add_argument("--of", metavar="FILE")
    given = parser.parse_args()
    top, running = graph(["top"]), graph(["top", "lazy"])
    chain, circles, knots = deepest(top), cycles(running), cycles(folder_edges(running))
    if given.of:
        name = given.of.removesuffix(".py").split(f"{PACKAGE}/")[-1].replace("/", ".")
        print(f"{name} imports:", *sorted(running[name]), sep="\n  ")
        print("and is imported by:", *sorted(one for one, others in running.items() if name in others), sep="\n  ")
        return 0
    print(f"{len(top)} modules, {sum(map(len, top.values()))} imports at the top, "
          f"{sum(map(len, running.values())) - sum(map(len, top.values()))} more inside functions")  # fmt: skip
    print(f"deepest chain at the top: {len(chain)} files (at most {DEEPEST})\n  {' -> '.join(chain)}")
    both = deepest(running)
    print(f"deepest chain with imports inside functions: {len(both)} files\n  {' -> '.join(both)}")
    print(f"cycles of files, imports inside functions too: {len(circles)}")
    for part in circles:
        print(f"  {', '.join(part)}")
    print(f"cycles of folders, imports inside functions too: {len(knots)}")
    pairs = between_folders(running)
    for part in knots:
        print(f"  {', '.join(part)}")
        for (a, b), many in sorted(pairs.items()):
            if a in part and b in part and (many < 4 or given.folders):
                who = sorted(f"{one} -> {other}" for one, others in running.items() if folder(one) == a
                             for other in others if folder(other) == b)  # fmt: skip
                print(f"    {a} -> {b}: {'; '.join(who)}")
    if given.folders:
        for (a, b), many in sorted(pairs.items()):
            print(f"  {a} -> {b}: {many}")
    return int(len(chain) > DEEPEST or bool(circles) or bool(knots))


if __name__ == "__main__":
    sys.exit(main())
