"""The command tree."""

from __future__ import annotations

import re
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

from dollartune.cli import (
    advice,
    backbones,
    catalog,
    data,
    docs,
    export,
    machine,
    plan,
    predict,
    results,
    run,
    studies,
    tune,
)

EVERYWHERE = ("-q", "--quiet", "-v", "-vv", "--verbose")


class PlainCommand(TyperCommand):
    """Help in the words of other programs: `STUDY...` and `<path>`, where typer writes `{STUDY...}...` and `<list[Path]>`."""

    def get_help(self, ctx: Any) -> str:
        text = super().get_help(ctx)
        usage, rest = text.split("\n", 1)
        usage = re.sub(r"(\.\.\.)+", "...", re.sub(r"[{}]", "", usage))
        usage = usage.replace("TASK...", "TASK")
        # as wide as before, so that columns stay columns
        rest = re.sub(r"<list\[(\w+)\]>|<(\w+) range>", lambda m: f"<{(m[1] or m[2]).lower()}>".ljust(len(m[0])), rest)
        return f"{usage}\n{rest}"


class WithGlobalOptions(TyperGroup):
    """-q and -v may also stand behind the verb, where people write them first."""

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


app.command("demo", cls=PlainCommand)(run.demo)
app.command("init", cls=PlainCommand)(data.init)
app.command("check", cls=PlainCommand)(run.check)
app.command("plan", cls=PlainCommand)(plan.plan)
app.command("run", cls=PlainCommand)(run.run)
app.command("tune", cls=PlainCommand)(tune.tune)
app.command("status", cls=PlainCommand)(results.status)
app.command("results", cls=PlainCommand)(results.results)
app.command("report", cls=PlainCommand)(results.report)
app.command("compare", cls=PlainCommand)(studies.compare)
app.command("merge", cls=PlainCommand)(studies.merge)
app.command("view", cls=PlainCommand)(studies.view)
app.command("predict", cls=PlainCommand)(predict.predict)
app.command("evaluate", cls=PlainCommand)(predict.evaluate)
app.command("doubts", cls=PlainCommand)(predict.doubts)
app.command("export", cls=PlainCommand)(export.export)
app.command("merge-adapters", cls=PlainCommand)(export.merge_adapters)
app.command("import", cls=PlainCommand)(export.import_)
app.command("serve", cls=PlainCommand)(export.serve)
app.command("count", cls=PlainCommand)(catalog.count)
app.command("advise", cls=PlainCommand)(advice.advise)
app.command("doctor", cls=PlainCommand)(machine.doctor)
app.command("schema", cls=PlainCommand)(machine.schema)
app.command("docs", cls=PlainCommand)(docs.docs)

methods = typer.Typer(help="Tuning methods: list, show.", no_args_is_help=True)
methods.command("ls", cls=PlainCommand)(catalog.methods_ls)
methods.command("show", cls=PlainCommand)(catalog.methods_show)
app.add_typer(methods, name="methods")

tasks = typer.Typer(help="Tasks: list, show.", no_args_is_help=True)
tasks.command("ls", cls=PlainCommand)(catalog.tasks_ls)
tasks.command("show", cls=PlainCommand)(catalog.tasks_show)
app.add_typer(tasks, name="tasks")

models = typer.Typer(help="Pretrained models: list, fetch, show.", no_args_is_help=True)
models.command("ls", cls=PlainCommand)(backbones.ls)
models.command("get", cls=PlainCommand)(backbones.get)
models.command("show", cls=PlainCommand)(backbones.show)
app.add_typer(models, name="backbones")

machines = typer.Typer(help="Machines and their prices.", no_args_is_help=True)
machines.command("ls", cls=PlainCommand)(catalog.machines_ls)
app.add_typer(machines, name="machines")

kept = typer.Typer(help="What is kept between runs: list, clear.", no_args_is_help=True)
kept.command("ls", cls=PlainCommand)(machine.cache_ls)
kept.command("clear", cls=PlainCommand)(machine.cache_clear)
app.add_typer(kept, name="cache")

trials = typer.Typer(help="Trials of a study: list, extend, remove.", no_args_is_help=True)
trials.command("ls", cls=PlainCommand)(studies.trials_ls)
trials.command("extend", cls=PlainCommand)(studies.trials_extend)
trials.command("rm", cls=PlainCommand)(studies.trials_rm)
app.add_typer(trials, name="trials")
