"""A student in a notebook: completion, a frame as data, a picture, a loop of their own. The cells are run by a real kernel where
IPython is installed, and one after the other where it is not."""

from __future__ import annotations

import textwrap
from functools import partial
from pathlib import Path

import pytest
from commands import Command

pytestmark = pytest.mark.slow

CELLS = [
    """
    import dollartune
    assert {"Study", "tune", "attach"} <= set(dir(dollartune))
    import inspect
    from dollartune import Study, attach, load_backbone, tune
    assert {"backbone", "task", "methods", "budget"} <= set(inspect.signature(Study).parameters)
    assert {"data", "label", "budget"} <= set(inspect.signature(tune).parameters)
    assert "LoRA" in dir(dollartune.methods)
    """,
    """
    import pandas
    frame = pandas.read_csv("reviews.csv")
    study = Study(
        backbone="tiny-encoder", task={"data": frame, "label": "mood"}, methods=["bitfit", "head"], scales=[40], seeds=1,
        training={"epochs": 1}, evaluation={"rows": 16, "forgetting": False, "inference_cost": False}, name="notebook",
    )
    results = study.run()
    """,
    """
    assert "<table" in results._repr_html_()
    assert results.plot()._repr_svg_().startswith("<svg")
    assert "trials done" in repr(results)
    """,
    """
    from dollartune.errors import UserError
    try:
        Study(backbone="tiny-encoder", task=frame, methods=["lorra"]).run()
    except UserError as error:
        assert "Did you mean 'lora'" in str(error)
    else:
        raise AssertionError("a misspelt method was taken")
    """,
    """
    import torch
    from dollartune.methods import LoRA
    backbone = load_backbone("tiny-decoder")
    tuned = attach(backbone.model, LoRA(rank=4))
    print(tuned)
    ids = backbone.processor("a fine day", return_tensors="pt").input_ids
    optimizer = torch.optim.AdamW([p for p in tuned.parameters() if p.requires_grad], lr=1e-3)
    tuned.train()
    tuned(input_ids=ids, labels=ids).loss.backward()
    optimizer.step()
    tuned.save_pretrained("mine")
    model = tuned.detach()
    """,
]


def test_the_cells_of_a_first_notebook(reviews: Path, tmp_path: Path) -> None:
    pytest.importorskip("vl_convert")
    (tmp_path / "reviews.csv").write_bytes(reviews.read_bytes())
    script = "\n".join(textwrap.dedent(cell) for cell in CELLS)
    program, cache = partial(exec, script, {"__name__": "__main__"}), {"DOLLARTUNE_CACHE": str(tmp_path / ".cache")}
    code, out, error = Command(folder=tmp_path, environment=cache, program=program).ended(1500)
    assert code == 0, out + error
    assert "parameters are trained" in out
    assert (tmp_path / "mine" / "adapter.safetensors").is_file()


def test_a_notebook_shows_progress_while_it_runs() -> None:
    """What stands under the cell, without a kernel: its text is the same."""
    from dollartune.study.progress import Notebook

    shown = Notebook()
    shown._show = lambda now=False: None  # type: ignore[method-assign]
    shown.note("<script>")
    shown.total, shown.done = 4, 1
    html = shown.html()
    assert "1/4 trials" in html
    assert "<progress" in html
    assert "<script>" not in html
