"""Does a test fail when a margin is changed? Changes every number of budget/, engines/, schedule/ and planner/, one at a time.

    python tools/mutate_margins.py [ROOM ...] [--file NAME] [--list]

A number is a module-level constant (also each number of a tuple, and a default value of a setting), or a literal in the
code. Each is changed in two ways, doubled and taken away (a factor becomes 1, a share of almost all becomes 1, seconds
become 0, a count is halved), in a temporary copy of the package; then the tests beside it are run until the first failure. A
change that no test notices is a survivor. Exits with 1 if there is one.

Numbers that are no margins stand in NO_MARGINS with the reason. 0, 1, 2 and -1 are not looked at in code: they are indices,
bounds and signs.
"""

from __future__ import annotations

import argparse
import ast
import compileall
import contextlib
import importlib
import os
import py_compile
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = "dollartune"
TESTS = {
    "budget": ["tests/budget/test_margins.py", "tests/budget"],
    "schedule": [
        "tests/schedule/test_margins.py",
        "tests/schedule/test_margins_in_studies.py",
        "tests/schedule",
    ],
    "engines": ["tests/engines/test_margins.py", "tests/engines"],
    "planner": ["tests/planner/test_planner_margins.py", "tests/planner/test_trial_cost_margins.py", "tests/planner"],
}
"""By room: the fast tests of margins first, then all tests beside it. Before them comes `test_FILE_margins.py` of the file,
where there is one: most changes are caught there, in a moment."""

NO_MARGINS: dict[str, str] = {
    "schedule/anytime_state.py:AnytimeState.probe_share": "default of a field: all rows; more is refused where it is read",
    "schedule/run_cost.py:NO_LIMIT_STEPS": "more than any useful length: more or less of that is the same",
    "schedule/optuna_search.py:4": "bytes of a digest that seed a sampler",
    "schedule/race_plan.py:LENGTHS": "a grid of lengths to choose from: a finer or coarser one costs or risks nothing",
    "schedule/racing.py:DRAWS_PER_SETTING": "ends the drawing from a space that is used up",
    "schedule/racing.py:FRACTION_DIGITS": "rounds a fraction, so that it is the same on every machine",
    "schedule/racing.py:6": "column of a file of 0.1",
    "schedule/scheduler.py:12": "digits of a file's name",
    "schedule/search.py:ASKS_PER_SETTING": "ends the asking of a space that is used up",
    "schedule/search.py:MOST_REPLANS": "ends a loop; each round needs trials 1.3 times as long, so that three are hardly reached",
    "schedule/search.py:MOMENT": "keeps a ratio from a division by nothing",
    "schedule/successive_halving.py:3": "default of an argument that every race gives",
    "schedule/successive_halving.py:6": "default of an argument that every race gives",
    "engines/cohort_worker.py:REQUEST_SECONDS": "how long a measurement is repeated that is made once at least",
    "engines/extra_metrics.py:SECONDS taken away": "how long a measurement is repeated that is made once at least",
    "engines/local.py:LocalEngine.slots": "one process does one cohort at a time",
    "engines/measure_cost.py:8": "rows that the trainer wants and nobody looks at",
    "engines/measure_cost.py:16": "rows of a measurement: a few more or fewer make it a little more or less exact",
    "engines/ray.py:LOOK_SECONDS": "how often it is looked: any short time does",
    "engines/ray_cluster.py:1e-09 doubled": "any tiny number bears the rounding of a fraction",
    "engines/trial_context.py:32": "default of an argument that only measurements of eight rows leave out",
    "engines/trial_scores.py:SMALLEST doubled": "any tiny number keeps a logarithm finite",
    "budget/deadline.py:AGAIN_SECONDS doubled": "how soon it is looked again: any short time does",
    "budget/deadline.py:REPEAT_SECONDS doubled": "the second ring is for code that swallowed the first",
    "budget/ledger.py:12": "digits of a name that is drawn",
    "budget/ledger.py:5": "ends the wait for a thread that stops at once",
    "budget/ledger.py:Share.weight": "what one trial weighs among equals",
    "budget/ledger.py:Ledger.session": "digits of a name that is drawn",
    "schedule/first_settings.py:Setting.rows_share": "default of a field that is given where it is read",
    "planner/batches.py:TaskShape.max_answer_tokens": "default of a field that every shape of a task gives",
    "planner/batches.py:TaskShape.limit": "default of a field that every shape of a task gives",
    "planner/calibration.py:16": "digits of a file's name",
    "planner/dry_run.py:3": "token id of a row that is made up",
    "planner/dry_run.py:4": "token id of a row that is made up",
    "planner/dry_run.py:BatchShape.answer": "default of a field that every shape of a batch gives",
    "planner/dry_run_cache.py:24": "digits of a file's name",
    "planner/dry_run_cache.py:PACKAGE": "which folder above the file",
    "planner/op_trace.py:3": "positions of an operation's arguments and axes",
    "planner/roofline.py:4": "number of a kind of kernel",
    "planner/roofline.py:5": "number of a kind of kernel",
    "planner/roofline.py:6": "number of a kind of kernel",
    "planner/roofline.py:7": "number of a kind of kernel",
    "planner/roofline.py:200": "ends a fit that converges in ten",
    "budget/peak_memory.py:0.01": "how often memory is sampled where no exact counter is there",
}
"""`file:NAME` or `file:literal`, with the kind of change where it holds for that one -> why no test need notice."""

IGNORED = (0, 1, 2, -1)
LIBRARIES = ("torch", "transformers", "peft", "optuna", "safetensors.torch", "scipy.stats")
"""Imported once, before the forks."""
UNLOADED = tuple(f"{PACKAGE}.{part}" for part in ("cli", "serve", "view", "__main__", "_moved", "engines.ray"))
"""Not imported before the forks: no test of a margin needs them."""
LIMIT_SECONDS = 1200.0
"""Tests that take longer have noticed: an endless loop is a failure."""


@dataclass(frozen=True)
class Number:
    """A number in the source."""

    path: Path
    name: str
    """Of the constant, or the literal itself."""
    line: int
    start: int
    end: int
    """Columns, in bytes."""
    value: float | int

    @property
    def key(self) -> str:
        return f"{self.path.relative_to(ROOT / 'src' / PACKAGE).as_posix()}:{self.name}"

    def changes(self) -> dict[str, float | int]:
        """What it becomes, by the kind of change."""
        return {"doubled": 2 * self.value, "taken away": taken_away(self.value)}


def taken_away(value: float | int) -> float | int:
    """The value that has no effect, as well as that can be told from the number."""
    if isinstance(value, int):
        return value // 2
    if 0.5 < value < 2:
        return 1.0  # a factor, or a share of almost all
    return 0.0 if value < 1 else value / 2


def numbers(path: Path) -> Iterator[Number]:
    """All numbers of a file that may be margins; a fraction such as `2 / 3` is one number. Zeros are none."""
    tree = ast.parse(path.read_text())
    constants = {id(n): name for name, value in module_constants(tree) for n in ast.walk(value)}
    inside_fraction: set[int] = set()
    for node in ast.walk(tree):  # from the outside to the inside
        value = number_of(node)
        if value is None or id(node) in inside_fraction:
            continue
        inside_fraction |= {id(part) for part in ast.walk(node)}
        name = constants.get(id(node))
        if value == 0 or (name is None and value in IGNORED):
            continue
        assert isinstance(node, ast.expr)
        assert node.end_col_offset is not None
        yield Number(path, name or ast.unparse(node), node.lineno, node.col_offset, node.end_col_offset, value)


def number_of(node: ast.AST) -> float | int | None:
    """The value of a literal, or of a fraction of two on one line."""
    if isinstance(node, ast.Constant) and isinstance(node.value, int | float) and not isinstance(node.value, bool):
        return node.value
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Div) and node.lineno == node.end_lineno:
        above, below = number_of(node.left), number_of(node.right)
        return None if above is None or not below else above / below
    return None


def module_constants(tree: ast.Module) -> Iterator[tuple[str, ast.expr]]:
    """(name, value) of assignments at module level, and of settings of classes at class level."""
    bodies = [("", tree.body), *((f"{n.name}.", n.body) for n in tree.body if isinstance(n, ast.ClassDef))]
    for prefix, body in bodies:
        for node in body:
            if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name | ast.Tuple):
                yield prefix + ast.unparse(node.targets[0]), node.value
            elif isinstance(node, ast.AnnAssign) and node.value is not None:
                yield prefix + ast.unparse(node.target), node.value


def survives(number: Number, value: float | int, copy: Path, tests: list[str], dependants: set[str]) -> bool:
    """Whether the tests pass with the number changed in the copy.

    Args:
        dependants: the number's module and those that import it, directly or not.
    """
    target = copy / number.path.relative_to(ROOT / "src")
    original = target.read_bytes()
    lines = original.split(b"\n")
    line = lines[number.line - 1]
    lines[number.line - 1] = line[: number.start] + repr(value).encode() + line[number.end :]
    target.write_bytes(b"\n".join(lines))
    try:
        for test in tests:
            if not (ROOT / test).exists():
                continue
            code = run_tests(test, copy, dependants)
            if code is None or code in (1, 2):  # too long, a test failed, or the package could not even be imported
                return False
            if code:
                raise RuntimeError(f"pytest ended with {code} for {test}")
    finally:
        target.write_bytes(original)
    return True


def run_tests(test: str, copy: Path, dependants: set[str]) -> int | None:
    """pytest's exit code, with the package of the copy; None if it took longer than LIMIT_SECONDS.

    In a fork of this process, which holds the copy's modules already: importing them is most of what such a run takes. The
    dependants are forgotten there and imported anew, with the number changed.
    """
    child = os.fork()
    if child == 0:
        for name in dependants & sys.modules.keys():
            del sys.modules[name]
            package, _, leaf = name.rpartition(".")
            if package in sys.modules:  # where `from package import leaf` would find the old one
                vars(sys.modules[package]).pop(leaf, None)
        os.environ |= {"PYTHONPATH": str(copy), "OMP_NUM_THREADS": "1"}
        os.chdir(ROOT)
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, 1)
        os.dup2(nowhere, 2)
        sys.dont_write_bytecode = True
        os._exit(int(pytest.main(["-q", "-x", "-p", "no:cacheprovider", test])))
    end = time.monotonic() + LIMIT_SECONDS
    while time.monotonic() < end:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.05)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return None


def preload(copy: Path) -> dict[str, set[str]]:
    """Imports the copy's modules, and says which modules import each, directly or not."""
    sys.path.insert(0, str(copy))
    for library in LIBRARIES:
        importlib.import_module(library)
    direct: dict[str, set[str]] = {}
    paths = {name_of(path.relative_to(copy)): path for path in (copy / PACKAGE).rglob("*.py")}
    for name, path in paths.items():
        parts = [
            f"{node.module}.{alias.name}" if f"{node.module}.{alias.name}" in paths else str(node.module)
            for node in ast.walk(ast.parse(path.read_text()))
            if isinstance(node, ast.ImportFrom)
            for alias in node.names
        ]
        for part in parts:
            direct.setdefault(part, set()).add(name)
        if not name.startswith(UNLOADED):
            with contextlib.suppress(ImportError):  # an extra that is not installed
                importlib.import_module(name)
    closed: dict[str, set[str]] = {}
    for name in paths:
        reached, waiting = {name}, [name]
        while waiting:
            new = direct.get(waiting.pop(), set()) - reached
            reached |= new
            waiting += new
        closed[name] = reached
    return closed


def name_of(path: Path) -> str:
    """`dollartune/budget/ledger.py` as a module's name."""
    return ".".join(path.with_suffix("").parts).removesuffix(".__init__")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rooms", nargs="*", default=list(TESTS), metavar="ROOM", help=", ".join(TESTS))
    parser.add_argument("--file", help="only this file of the rooms")
    parser.add_argument("--list", action="store_true", help="list the numbers and run nothing")
    parser.add_argument("--fast", action="store_true", help="run the tests of margins alone")
    arguments = parser.parse_args()
    survivors, count, seen = [], 0, set()
    dependants: dict[str, set[str]] = {}
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder)
        shutil.copytree(ROOT / "src" / PACKAGE, copy / PACKAGE, ignore=shutil.ignore_patterns("__pycache__"))
        if not arguments.list:
            # by hash, not by time: a changed file may have the size and the second of the file before it
            hashed = py_compile.PycInvalidationMode.CHECKED_HASH
            compileall.compile_dir(copy, quiet=2, invalidation_mode=hashed)
            dependants = preload(copy)
        for room in arguments.rooms:
            for path in sorted((ROOT / "src" / PACKAGE / room).glob("*.py")):
                if arguments.file not in (None, path.name):
                    continue
                for number in numbers(path):
                    seen |= {number.key, *(f"{number.key} {kind}" for kind in number.changes())}
                    if number.key in NO_MARGINS:
                        continue
                    count += 1
                    if arguments.list:
                        print(f"{number.key} line {number.line}: {number.value}")
                        continue
                    for kind, value in number.changes().items():
                        if value == number.value or f"{number.key} {kind}" in NO_MARGINS:
                            continue
                        nearest = f"tests/{room}/test_{path.stem}_margins.py"
                        tests = [nearest, *(TESTS[room][:-1] if arguments.fast else TESTS[room])]
                        module = name_of(path.relative_to(ROOT / "src"))
                        alive = survives(number, value, copy, list(dict.fromkeys(tests)), dependants[module])
                        print(
                            f"{'SURVIVES' if alive else 'caught  '} {number.key} line {number.line}: "
                            f"{number.value} {kind} -> {value}",
                            flush=True,
                        )
                        survivors += [f"{number.key} line {number.line}, {kind}"] if alive else []
    stale = [
        key for key in NO_MARGINS if key.split("/")[0] in arguments.rooms and key not in seen and not arguments.file
    ]
    print("".join(f"{key} is excused and not there any more\n" for key in stale), end="")
    if arguments.list:
        print(f"{count} numbers")
        return 0
    print(f"{count} numbers, {len(survivors)} survivors" + "".join(f"\n  {one}" for one in survivors))
    return 1 if survivors else 0


if __name__ == "__main__":
    sys.exit(main())
