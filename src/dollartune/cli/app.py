"""The command tree."""

from __future__ import annotations

import typer

from dollartune.cli import advice, backbones, catalog, data, docs, export, plan, predict, run, tune

app = typer.Typer(
    name="dollartune",
    help="What can fine-tuning accomplish for a dollar? Tuning methods against each other under one budget.",
    no_args_is_help=True,
    add_completion=False,
    # Plain help: rich is not needed for it, and its boxes break when help is piped into a file or an issue.
    rich_markup_mode=None,
    # A traceback is for a bug report, and must be Python's own; what a user can mend never reaches it (`cli.main`).
    pretty_exceptions_enable=False,
)

app.command("demo")(run.demo)
app.command("init")(data.init)
app.command("check")(run.check)
app.command("plan")(plan.plan)
app.command("run")(run.run)
app.command("tune")(tune.tune)
app.command("status")(run.status)
app.command("results")(run.results)
app.command("report")(run.report)
app.command("predict")(predict.predict)
app.command("evaluate")(predict.evaluate)
app.command("export")(export.export)
app.command("import")(export.import_)
app.command("serve")(export.serve)
app.command("count")(catalog.count)
app.command("advise")(advice.advise)
app.command("docs")(docs.docs)

methods = typer.Typer(help="Tuning methods: list, show.", no_args_is_help=True)
methods.command("ls")(catalog.methods_ls)
methods.command("show")(catalog.methods_show)
app.add_typer(methods, name="methods")

tasks = typer.Typer(help="Tasks: list, show.", no_args_is_help=True)
tasks.command("ls")(catalog.tasks_ls)
tasks.command("show")(catalog.tasks_show)
app.add_typer(tasks, name="tasks")

models = typer.Typer(help="Pretrained models: list, fetch, show.", no_args_is_help=True)
models.command("ls")(backbones.ls)
models.command("get")(backbones.get)
models.command("show")(backbones.show)
app.add_typer(models, name="backbones")

machines = typer.Typer(help="Machines and their prices.", no_args_is_help=True)
machines.command("ls")(catalog.machines_ls)
app.add_typer(machines, name="machines")
