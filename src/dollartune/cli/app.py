"""The command tree."""

from __future__ import annotations

import typer

from dollartune.cli import advice, backbones, catalog, data, docs, plan
from dollartune.cli import export as handing
from dollartune.cli import predict as using
from dollartune.cli import run as running
from dollartune.cli import tune as tuning

app = typer.Typer(
    name="dollartune",
    help="What can fine-tuning accomplish for a dollar? Tuning methods against each other under one budget.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)

app.command("demo")(running.demo)
app.command("init")(data.init)
app.command("check")(running.check)
app.command("plan")(plan.plan)
app.command("run")(running.run)
app.command("tune")(tuning.tune)
app.command("status")(running.status)
app.command("results")(running.results)
app.command("report")(running.report)
app.command("predict")(using.predict)
app.command("evaluate")(using.evaluate)
app.command("export")(handing.export)
app.command("import")(handing.import_)
app.command("serve")(handing.serve)
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
app.add_typer(models, name="backbones")

machines = typer.Typer(help="Machines and their prices.", no_args_is_help=True)
machines.command("ls")(catalog.machines_ls)
app.add_typer(machines, name="machines")
