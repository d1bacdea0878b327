"""The published tables: complete, typed, and consistent with each other where they can be checked."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from dollartune.budget.prices import machines
from dollartune.errors import UserError
from dollartune.evidence import claims, findings, formulas, sources, tables

METHODS_001 = {"full", "ia3", "lora", "bitfit", "prompt"}


def value(table: str, **wanted: object) -> float:
    (found,) = findings(table=table, **wanted)  # type: ignore[arg-type]
    return found.value


def test_every_table_is_there_with_every_cell() -> None:
    cells = {name: len(table.findings) for name, table in tables().items()}
    assert cells == {
        "000.results": 16 * 4 - 4, "000.predictions": 6,
        "001.table1": 60, "001.table2": 52, "001.table3": 16, "001.table4": 80, "001.table5": 48, "001.table6": 32,
        "001.speedup": 8,
        "002.table1": 3, "002.table2": 12, "002.table3": 24, "002.table4": 3,
        "003.rouge": 30, "003.vit": 12, "003.mt0": 4,
        "004.ranking": 5,
    }  # fmt: skip
    assert {table.source.key for table in tables().values()} == set(sources()) == {"000", "001", "002", "003", "004"}


def test_machines_of_the_sources_have_a_price() -> None:
    named = {finding.machine for finding in findings()} | {source.machine for source in sources().values()}
    assert named - {None} <= set(machines())


def test_rows_that_lost_their_name_are_ia3s() -> None:
    assert value("001.table1", method="ia3", data="ag_news", n_examples=100) == 0.67
    assert {finding.method for finding in findings(table="001.table1")} == METHODS_001


def test_every_dollar_bought_what_the_machine_costs() -> None:
    costs = findings(table="000.results", metric="cost_usd")
    assert len(costs) == 14
    for finding in costs:
        assert 15 <= finding.value * 60 / machines()["v100-n1"].dollars_per_hour <= 22


def test_ablations_start_from_the_main_tables_rows() -> None:
    for data in ("ag_news", "cola", "e2e_nlg", "samsum"):
        for method in ("lora", "ia3"):
            whole = [
                f for f in findings(table="001.table2", method=method, data=data) if f.setting["ablation"] == "all"
            ]
            main = value("001.table1", method=method, data=data, n_examples=1000)
            assert whole[0].value == pytest.approx(main, abs=5e-6)


def test_table_5_is_table_1_over_table_3() -> None:
    """Per 100,000 parameters, to the printed digits."""
    counts = {f.method: f.value for f in findings(table="001.table3") if f.setting["ablation"] == "all"}
    for cell in findings(table="001.table5"):
        score = value("001.table1", method=cell.method, data=cell.data, n_examples=cell.n_examples)
        assert cell.value == pytest.approx(1e5 * score / counts[cell.method], rel=0.015), cell


def test_the_stated_speed_ups_follow_from_table_4() -> None:
    """1 - full's seconds over the mean of the other four; SAMSum at medium scale does not (64 % printed, 50 % here)."""
    for cell in findings(table="001.speedup"):
        seconds = {
            f.method: f.value
            for f in findings(table="001.table4", metric="convergence_seconds", data=cell.data)
            if f.n_examples == cell.n_examples
        }
        others = [value for method, value in seconds.items() if method != "full"]
        computed = 1 - seconds["full"] / (sum(others) / len(others))
        if (cell.data, cell.n_examples) == ("samsum", 1000):
            assert computed == pytest.approx(0.50, abs=0.01)
        else:
            assert computed == pytest.approx(cell.value, abs=0.012)


@pytest.mark.parametrize("key", ["000", "001", "002", "003"])
def test_every_number_stands_in_the_source(key: str) -> None:
    root = Path(os.environ.get("DOLLARTUNE_SHARED", Path(__file__).parents[3] / "shared")) / "references"
    files = sorted(root.glob(f"{key}_*.txt")) if root.exists() else []
    if not files:
        pytest.skip("the sources are not at hand (DOLLARTUNE_SHARED)")
    text = re.sub(r"(?<=\d),(?=\d{3})", "", files[0].read_text())
    numbers = [float(number) for number in re.findall(r"\d+\.?\d*(?:E-\d+)?|\.\d+", text)]
    known = set(numbers) | {round(number / 100, 8) for number in numbers}
    for finding in findings(source=key):
        if finding.table == "003.mt0":
            continue
        assert round(finding.value, 8) in known, finding


def test_formulas_give_the_known_counts() -> None:
    assert set(formulas()) >= {"houlsby", "compacter", "lora", "bitfit", "prefix", "adapter_bias", "parallel"}
    # BERT-base, reduction 16: 1,789,056 with biases, of which 12 * 2 * (48 + 768) are biases
    assert formulas()["houlsby"].count(L=12, d_h=768, d_m=48) == 1_789_056 - 24 * (48 + 768)
    # LoRA r on two square projections of every layer
    assert formulas()["lora"].count(L=12, d_h=768, d_m=8) == 12 * 2 * 8 * (768 + 768)
    assert formulas()["adapter_bias"].count(L=12, d_h=768) == 12 * 2 * 768
    with pytest.raises(UserError, match="needs d_m"):
        formulas()["lora"].count(L=12, d_h=768)


def test_claims_cite_a_source_and_a_place() -> None:
    assert len({claim.key for claim in claims()}) == len(claims())
    for claim in claims():
        assert claim.source in sources()
        assert claim.section
        assert claim.about in {"time", "memory", "quality", "serving", "data"}


def test_unknown_names_say_the_nearest() -> None:
    with pytest.raises(UserError, match=r"Did you mean '001\.table1'"):
        findings(table="001.tabel1")
