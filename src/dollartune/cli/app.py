"""The command tree."""

from __future__ import annotations

import inspect
import re
from collections import UserDict
from collections.abc import Callable
from importlib import import_module
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup, TyperOption

VERBS = {
    "demo": "run.demo",
    "init": "data.init",
    "check": "run.check",
    "plan": "plan.plan",
    "run": "run.run",
    "tune": "tune.tune",
    "status": "results.status",
    "results": "results.results",
    "report": "results.report",
    "compare": "studies.compare",
    "merge": "studies.merge",
    "view": "studies.view",
    "predict": "predict.predict",
    "evaluate": "predict.evaluate",
    "doubts": "predict.doubts",
    "export": "export.export",
    "merge-adapters": "export.merge_adapters",
    "import": "export.import_",
    "serve": "export.serve",
    "count": "catalog.count",
    "advise": "advice.advise",
    "doctor": "machine.doctor",
    "schema": "machine.schema",
    "docs": "docs.docs",
    "methods ls": "catalog.methods_ls",
    "methods show": "catalog.methods_show",
    "tasks ls": "catalog.tasks_ls",
    "tasks show": "catalog.tasks_show",
    "backbones ls": "backbones.ls",
    "backbones get": "backbones.get",
    "backbones show": "backbones.show",
    "machines ls": "catalog.machines_ls",
    "cache ls": "machine.cache_ls",
    "cache clean": "machine.cache_clean",
    "trials ls": "studies.trials_ls",
    "trials extend": "studies.trials_extend",
    "trials rm": "studies.trials_rm",
}
"""What is typed -> the function that does it, a file of this folder and a name in it. In the order of `--help`."""

GROUPS = {
    "methods": "Tuning methods: list, show.",
    "tasks": "Tasks: list, show.",
    "backbones": "Pretrained models: list, fetch, show.",
    "machines": "Machines and their prices.",
    "cache": "What is kept between runs: list, clean.",
    "trials": "Trials of a study: list, extend, remove.",
}

EVERYWHERE = ("-q", "--quiet", "-v", "-vv", "--verbose")


class OutputClosed(Exception):
    """Whoever read what is printed has gone (`| head`). No OSError, for which typer has an exit status of its own."""


class PlainCommand(TyperCommand):
    """Help in the words of other programs: `STUDY...` and `<path>`, where typer writes `{STUDY...}...` and `<list[Path]>`; and an
    option of one value that is given twice is refused, where typer takes the last one without a word."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        _, _, given = self.make_parser(ctx).parse_args(args=list(args))
        for one in given if not ctx.resilient_parsing else ():  # a shell's completion asks for half a line
            single = isinstance(one, TyperOption) and not (one.multiple or one.is_flag or one.count)
            if single and sum(other is one for other in given) > 1:
                ctx.fail(f"Option '{one.opts[0]}' is given twice; it takes one value.")
        return super().parse_args(ctx, args)

    def get_usage(self, ctx: Any) -> str:
        return self._plain(super().get_usage(ctx))

    def _plain(self, usage: str) -> str:
        return re.sub(r"(\.\.\.)+", "...", re.sub(r"[{}]", "", usage)).replace("TASK...", "TASK")

    def get_help(self, ctx: Any) -> str:
        text = super().get_help(ctx)
        usage, rest = text.split("\n", 1)
        usage = self._plain(usage)
        # as wide as before, so that columns stay columns
        rest = re.sub(r"<list\[(\w+)\]>|<(\w+) range>", lambda m: f"<{(m[1] or m[2]).lower()}>".ljust(len(m[0])), rest)
        return f"{usage}\n{rest}"


def _function(verb: str) -> Callable[..., Any]:
    module, name = VERBS[verb].split(".")
    return getattr(import_module(f"dollartune.cli.{module}"), name)  # type: ignore[no-any-return]


def _command(verb: str) -> Any:
    alone = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)
    alone.command(verb.split()[-1], cls=PlainCommand)(_function(verb))
    made = typer.main.get_command(alone)
    for parameter in made.params:
        if parameter.param_type_name == "argument" and parameter.metavar is None:
            parameter.metavar = str(parameter.name).upper()  # as other programs write it: DATA
    return made


class CommandsWhenAsked(UserDict[str, Any]):
    """Commands by name, each made when it is asked for: making all takes longer than most of them take to answer."""

    def __init__(self, group: str = "") -> None:
        super().__init__()
        self._before = f"{group} " if group else ""
        names = [verb.removeprefix(self._before) for verb in VERBS if verb.startswith(self._before)]
        self.data = dict.fromkeys(name for name in names if " " not in name)
        if not group:
            self.data |= dict.fromkeys(GROUPS)

    def __getitem__(self, name: str) -> Any:
        if self.data[name] is None:
            if not self._before and name in GROUPS:
                self.data[name] = CommandGroup(
                    name=name, help=GROUPS[name], no_args_is_help=True, rich_markup_mode=None
                )
            else:
                self.data[name] = _command(self._before + name)
        return self.data[name]

    def sentence(self, name: str, width: int) -> str:
        """What a command does, in one line of at most `width` characters, without making it."""
        verb = self._before + name
        help_text = GROUPS[name] if verb not in VERBS else inspect.getdoc(_function(verb))
        return TyperCommand(name, help=help_text, rich_markup_mode=None).get_short_help_str(width)


class CommandGroup(TyperGroup):
    """A group whose commands are those of `VERBS`."""

    def __init__(self, *, name: str | None = None, commands: Any = None, **settings: Any) -> None:
        super().__init__(name=name, **settings)
        self.commands: CommandsWhenAsked = CommandsWhenAsked(name if name in GROUPS else "")

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        width = formatter.width - 6 - max(map(len, self.commands))
        with formatter.section("Commands"):
            formatter.write_dl([(name, self.commands.sentence(name, width)) for name in self.commands])


class WithGlobalOptions(CommandGroup):
    """-q and -v may also stand behind the verb, where people write them first."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except BrokenPipeError:
            raise OutputClosed from None

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        # What stands behind `--` is an argument, also where it looks like an option.
        end = args.index("--") if "--" in args else len(args)
        front = [word for word in args[:end] if word in EVERYWHERE]
        return super().parse_args(ctx, [*front, *(word for word in args[:end] if word not in EVERYWHERE), *args[end:]])


app = typer.Typer(
    name="dollartune",
    cls=WithGlobalOptions,
    help="What can fine-tuning accomplish for a dollar? Tuning methods against each other under one budget.",
    epilog="Exit status: 0 all is well; 1 something did not work out (a trial or a check failed); 2 what was given cannot work, "
    "with one sentence why; 130 stopped by Ctrl-C, what is done is kept. First steps: dollartune doctor, dollartune init DATA.",
    no_args_is_help=True,
    add_completion=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    # Plain help: rich is not needed for it, and its boxes break when help is piped into a file or an issue.
    rich_markup_mode=None,
    # A traceback is for a bug report, and must be Python's own; what a user can mend never reaches it (`cli.main`).
    pretty_exceptions_enable=False,
)


def _print_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        print(f"dollartune {version('dollartune')}")
        raise typer.Exit


@app.callback()
def whole(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and stop.")
    ] = False,
    quiet: Annotated[
        bool, typer.Option("--quiet", "-q", help="Print results and errors only, no progress, no notes.")
    ] = False,
    verbose: Annotated[
        int, typer.Option("--verbose", "-v", count=True, help="Also print what is decided and why; -vv for more.")
    ] = 0,
) -> None:
    """What can fine-tuning accomplish for a dollar? Tuning methods against each other under one budget."""
    from dollartune.cli.output import set_verbosity

    set_verbosity(quiet, verbose)
