"""`advise`: which method, for this task and these means."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from dollartune.cli.options import Json


def advise(
    examples: Annotated[int, typer.Option("--examples", "-n", help="Training examples you have.", min=1)],
    task: Annotated[
        str, typer.Option(help="classification, generation, image_classification, regression or other.")
    ] = "classification",
    priority: Annotated[str, typer.Option(help="What matters most: quality, time, memory, serving.")] = "quality",
    study: Annotated[
        Path | None, typer.Option(help="Your own study; where it has a method, it wins over published ones.")
    ] = None,
    machine: Annotated[str | None, typer.Option(help="A machine of `dollartune machines ls`.")] = None,
    budget: Annotated[str | None, typer.Option(help="For example '$1' or '20 min'.")] = None,
    backbone: Annotated[str | None, typer.Option(help="The model to tune; with a machine, says what fits.")] = None,
    whole: Annotated[
        bool, typer.Option("--all", "-a", help="Print the whole ranking with reasons and sources, not five lines.")
    ] = False,
    json: Json = False,
) -> None:
    """Recommend a method in five lines: which, why, what it costs here, how sure that is, and the command to run.

    It rests on your own study, else on published results and studies of ours; --all prints all that is known.
    """
    from dollartune.advise import advise as recommend
    from dollartune.cli.output import print_json
    from dollartune.study.api import open_study

    rows = parameters = None
    if study is not None:
        from dollartune.advise.own_study import rows_of

        rows = rows_of(open_study(study))
    if backbone is not None:
        from dollartune.backbones.loading import anatomy_of, empty_model

        parameters = anatomy_of(empty_model(backbone)).at("model")[0].parameters
    chosen: Any = priority  # checked there
    recommendation = recommend(
        examples, task, chosen, study_results=rows, machine=machine, budget=budget, backbone_parameters=parameters
    )
    if json or whole:
        print_json(recommendation.to_dict()) if json else print(recommendation.text())
        return
    if not recommendation.recommended:
        print(recommendation.short())
        return
    from dollartune.advise.cost_here import beside_a_probe, rough_cost

    best, costs, enough = recommendation.recommended[0], None, "5 min"
    if parameters is not None and examples:
        cost = rough_cost(best, parameters, examples, machine)
        costs, enough = cost.sentence, cost.budget
        if task == "classification":
            costs += beside_a_probe(best, parameters, examples, machine)
    words = f"dollartune tune {backbone or 'DATA'}{' DATA' if backbone else ''} --method {best}"
    print(recommendation.question)
    print(recommendation.short(costs, f"{words} --budget '{budget or enough}'"))
    print("more:    the same command with --all")
