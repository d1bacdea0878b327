"""A server answers with solved adapters: the same classes as predicting with them, beside adapters of other kinds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from dollartune.evaluate.predict import predict_rows
from dollartune.export.opening import open_adapter
from dollartune.study.api import Study

fastapi = pytest.importorskip("fastapi")


@pytest.fixture(scope="module")
def adapters(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Adapters of a study on tiny-encoder, by method."""
    folder = tmp_path_factory.mktemp("studies")
    study = Study(
        name="solved",
        backbone="tiny-encoder",
        task="demo_library",
        methods=["linear_probe", "knn", "head"],
        scales=[64],
        seeds=1,
        training={"epochs": 1, "max_length": 48, "validation_rows": 8},
        evaluation={"rows": 16, "free_generation": False, "forgetting": False, "inference_cost": False},
        keep_adapters="all",
        output=str(folder),
    )
    results = study.run()
    return {record.trial.group: folder / "solved" / "trials" / record.id / "adapter" for record in results.done()}


def test_classify_gives_what_predicting_gives(adapters: dict[str, Path]) -> None:
    from fastapi.testclient import TestClient

    from dollartune.serve.app import create_app
    from dollartune.serve.limits import Limits
    from dollartune.serve.run import build_service

    rows: list[dict[str, Any]] = [{"summary": "Sum of array elements."}, {"summary": "Draws a graph of nodes."}]
    service = build_service("tiny-encoder", adapters, Limits())
    with TestClient(create_app(service)) as client:
        for name, folder in adapters.items():
            answer = client.post("/v1/classify", json={"model": name, "input": rows})
            assert answer.status_code == 200, answer.text
            expected = predict_rows(open_adapter(folder), rows)
            assert [one["label"] for one in answer.json()["data"]] == [row.predicted for row in expected]
