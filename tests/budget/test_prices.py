"""The table of machines, and prices as people write them."""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import Any

import pytest

from dollartune.budget.prices import find_price, machine, machine_here, machines, parse_price, price_note
from dollartune.errors import UserError


@pytest.mark.parametrize(
    ("given", "dollars"),
    [("2.49/h", 2.49), ("$2.49/h", 2.49), ("2.49", 2.49), (2.49, 2.49), ("0.04/min", 2.4), ("3 usd per hour", 3.0),
     ("$0.001/s", 3.6), (" .5 / hours ", 0.5), (0, 0.0)],
)  # fmt: skip
def test_prices(given: Any, dollars: float) -> None:
    assert parse_price(given) == pytest.approx(dollars)


@pytest.mark.parametrize("given", ["", "free", "-2/h", -1, "2/parsec", float("nan"), True, None, "2.49/h/h"])
def test_what_is_no_price(given: Any) -> None:
    with pytest.raises(UserError):
        parse_price(given)


def test_a_dollar_on_the_first_sources_machine_is_about_twenty_minutes() -> None:
    assert 20 <= 60 / machine("v100-n1").dollars_per_hour <= 21


def test_the_sources_machines_come_first_and_every_row_is_plausible() -> None:
    known = machines()
    assert list(known)[:4] == ["v100-n1", "4xa10", "a100-80gb", "4xa100-80gb"]
    assert {"h100", "h200", "l4", "t4", "rtx-4090"} <= set(known)
    assert sum(row.kind == "cpu" for row in known.values()) >= 4
    for row in known.values():
        assert row.source
        assert row.as_of.startswith("20")
        assert row.half_flops >= row.single_flops > 0
        assert row.device_memory_bytes >= 8 * 2**30
        assert 10e9 <= row.bandwidth_bytes <= 5e12
        assert 10 < row.devices * row.device_watts + row.host_watts < 10_000


def test_an_unknown_machine_names_the_nearest() -> None:
    with pytest.raises(UserError, match="Did you mean 'a100-80gb'"):
        machine("a100-80g")


@pytest.mark.parametrize(
    ("cards", "product", "row"),
    [
        (["Tesla V100-SXM2-16GB"], "Google", "v100-n1"),
        (["NVIDIA A100-SXM4-80GB"], "", "a100-80gb"),
        (["NVIDIA A100-SXM4-80GB"] * 4, "", "4xa100-80gb"),
        (["NVIDIA A100-SXM4-40GB"], "", None),
        (["NVIDIA H100 80GB HBM3"], "", "h100"),
        (["NVIDIA A10G"] * 2, "", None),
        (["NVIDIA GeForce RTX 4090"], "", "rtx-4090"),
        ([], "c7i.2xlarge\n", "cpu-8"),
        ([], "Standard PC", None),
    ],
)
def test_the_row_of_a_machine_is_found_by_what_its_system_says(
    cards: list[str], product: str, row: str | None, tmp_path: Path
) -> None:
    for number, model in enumerate(cards):
        card = tmp_path / f"proc/driver/nvidia/gpus/{number}"
        card.mkdir(parents=True)
        (card / "information").write_text(f"Model: \t\t {model}\nIRQ:   \t\t 16\n")
    name = tmp_path / "sys/devices/virtual/dmi/id/product_name"
    name.parent.mkdir(parents=True)
    name.write_text(product)
    found = machine_here(tmp_path)
    assert (None if found is None else found.name) == row


def test_the_users_file_adds_and_overrides(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text('as_of: "2026-11"\nmachines:\n  h100: {dollars_per_hour: 1.99, source: our contract}\n')
    mine = machine("h100", file)
    assert (mine.dollars_per_hour, mine.source, mine.as_of) == (1.99, "our contract", "2026-11")
    assert mine.device_memory_bytes == machine("h100").device_memory_bytes
    monkeypatch.setenv("DOLLARTUNE_MACHINES", str(file))
    assert find_price(machine_name="h100") == 1.99
    assert machines()["t4"].dollars_per_hour == 0.526


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("machines: {h100: {dollars_per_hours: 1}}", "Did you mean 'dollars_per_hour'"),
        ("machines: {mine: {dollars_per_hour: 1}}", "lacks"),
        ("machines: {h100: {dollars_per_hour: free}}", "must be a number"),
        ("machines: {h100: 3}", "row of keys"),
        ("- h100", "must hold `machines:`"),
        ("machines: {", "not YAML"),
    ],
)
def test_a_bad_file_is_refused_with_a_word(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(text)
    with pytest.raises(UserError, match=message):
        machines(file)


def test_a_missing_file() -> None:
    with pytest.raises(UserError, match="no table"):
        machines("/no/such/file.yaml")


def test_what_decides_the_price() -> None:
    assert find_price("1.5/h", "h100") == 1.5
    assert find_price(None, "t4") == 0.526
    assert find_price() == 0.0


def test_a_price_says_when_and_where_from_and_an_old_one_says_so() -> None:
    row = machine("v100-n1")
    year, month = map(int, row.as_of.split("-"))
    fresh = price_note("v100-n1", None, datetime.date(year, month, 28))
    assert fresh is not None
    assert row.as_of in fresh
    assert "Google Cloud list price" in fresh
    assert "months ago" not in fresh
    old = price_note("v100-n1", None, datetime.date(year + 1, month, 1))
    assert old is not None
    assert "12 months ago" in old
    six = price_note("v100-n1", None, datetime.date(year + (month + 6 > 12), (month + 5) % 12 + 1, 1))
    assert six is not None
    assert "months ago" not in six
    assert price_note("v100-n1", "2.49/h", datetime.date(year + 1, month, 1)) is None
    assert price_note(None, None, datetime.date(year + 1, month, 1)) is None
