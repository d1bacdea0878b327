"""What machines cost and can do: a dated table with the source of every figure, and prices as people write them."""

from __future__ import annotations

import datetime
import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import cache
from pathlib import Path
from typing import Any, Literal

from dollartune.budget.limit import SECONDS_PER
from dollartune.errors import UserError, unknown_name

TABLE = Path(__file__).with_name("machines.yaml")
USER_TABLE = "DOLLARTUNE_MACHINES"
"""Environment variable with the path of the user's own table."""
_GIB, _TERA, _GIGA = 2**30, 1e12, 1e9
_PRICE = re.compile(r"\$?\s*(\d+(?:\.\d+)?|\.\d+)\s*(?:\$|usd|dollars?)?\s*(?:(?:/|per)\s*([a-z]+))?", re.IGNORECASE)


@dataclass(frozen=True)
class Machine:
    """One row of the table. Figures of memory, FLOP/s, bandwidth and watts are per device."""

    name: str
    title: str
    dollars_per_hour: float
    """For the whole machine."""
    source: str
    """Where the price is from."""
    as_of: str
    """When it was valid, `YYYY-MM`."""
    device: str
    kind: Literal["cuda", "cpu"]
    devices: int
    device_memory_bytes: int
    half_flops: float
    """Peak dense bf16 or fp16 FLOP/s."""
    single_flops: float
    """Peak dense fp32 FLOP/s."""
    bandwidth_bytes: float
    """Bytes per second between a device and its memory."""
    device_watts: float
    host_watts: float
    vcpus: int
    host_memory_bytes: int


_ROW_KEYS = {
    "title": str, "dollars_per_hour": float, "source": str, "as_of": str, "device": str, "kind": str, "devices": int,
    "device_memory_gib": float, "half_tflops": float, "single_tflops": float, "bandwidth_gbps": float,
    "device_watts": float, "host_watts": float, "vcpus": int, "host_memory_gib": float,
}  # fmt: skip


def _row(name: str, row: Mapping[str, Any], as_of: str, file: Path) -> Machine:
    for key in row:
        if key not in _ROW_KEYS:
            raise unknown_name(f"key of machine {name!r} in {file}", str(key), _ROW_KEYS)
    values: dict[str, Any] = {"as_of": as_of, **row}
    for key, kind in _ROW_KEYS.items():
        if key not in values:
            raise UserError(
                f"machine {name!r} in {file} lacks {key!r}.", "Copy a row of `dollartune machines ls --json`."
            )
        value = values[key]
        if kind is str:
            values[key] = str(value)
        # In Python True is a number, and YAML's `.inf` and `.nan` are too.
        elif isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < math.inf:
            raise UserError(f"machine {name!r} in {file}: {key} must be a number of at least 0, got {value!r}.")
    if values["kind"] not in ("cuda", "cpu"):
        raise unknown_name(f"kind of machine {name!r}", values["kind"], ("cuda", "cpu"))
    return Machine(
        name, values["title"], float(values["dollars_per_hour"]), values["source"], values["as_of"], values["device"],
        values["kind"], int(values["devices"]), round(values["device_memory_gib"] * _GIB),
        # Memory is sold in powers of two, FLOP/s and bandwidth in powers of ten.
        values["half_tflops"] * _TERA, values["single_tflops"] * _TERA, values["bandwidth_gbps"] * _GIGA,
        float(values["device_watts"]), float(values["host_watts"]), int(values["vcpus"]),
        round(values["host_memory_gib"] * _GIB),
    )  # fmt: skip


def _raw(machine: Machine) -> dict[str, object]:
    """A machine as the keys of a row, so that a user's row may state only what differs."""
    row = {field.name: getattr(machine, field.name) for field in fields(machine) if field.name in _ROW_KEYS}
    return row | {
        "device_memory_gib": machine.device_memory_bytes / _GIB,
        "half_tflops": machine.half_flops / _TERA,
        "single_tflops": machine.single_flops / _TERA,
        "bandwidth_gbps": machine.bandwidth_bytes / _GIGA,
        "host_memory_gib": machine.host_memory_bytes / _GIB,
    }


def _read(file: Path, known: Mapping[str, Machine]) -> dict[str, Machine]:
    import yaml

    try:
        content = yaml.safe_load(file.read_text(encoding="utf8"))
    except FileNotFoundError as error:
        raise UserError(f"there is no table of machines at {file}.", f"Check --machines or {USER_TABLE}.") from error
    except yaml.YAMLError as error:
        raise UserError(f"{file} is not YAML: {error}") from error
    if not isinstance(content, Mapping) or not isinstance(content.get("machines"), Mapping):
        raise UserError(f"{file} must hold `machines:` with a row per machine name.")
    as_of = str(content.get("as_of", "unknown"))
    machines = dict(known)
    for name, row in content["machines"].items():
        if not isinstance(row, Mapping):
            raise UserError(f"machine {name!r} in {file} must be a row of keys, got {row!r}.")
        # A row of the user's is as old as the user's file, even where it states only a price.
        base = _raw(known[name]) | {"as_of": as_of} if name in known else {}
        machines[str(name)] = _row(str(name), base | dict(row), as_of, file)
    return machines


@cache
def _shipped() -> dict[str, Machine]:
    return _read(TABLE, {})


def machines(user_file: str | Path | None = None) -> dict[str, Machine]:
    """All machines by name, the user's own rows over the shipped ones.

    Args:
        user_file: a YAML file like the shipped one; `DOLLARTUNE_MACHINES` if not given. A row with a known name need
            only state what differs.

    Raises:
        UserError: the file is missing or not such a table.
    """
    chosen = user_file or os.environ.get(USER_TABLE)
    return _read(Path(chosen), _shipped()) if chosen else dict(_shipped())


def machine(name: str, user_file: str | Path | None = None) -> Machine:
    """One machine by its name.

    Raises:
        UserError: unknown name; says the nearest one.
    """
    known = machines(user_file)
    if name.lower() not in known:
        raise unknown_name("machine", name, known, "See `dollartune machines ls`, or give --price 2.49/h.")
    return known[name.lower()]


def machine_here(root: Path = Path("/")) -> Machine | None:
    """The table's row of this machine, by what its system says of it; None where that fits no row.

    Args:
        root: of the file system that is read.
    """
    cards = [_words(path.read_text()) for path in sorted(root.glob("proc/driver/nvidia/gpus/*/information"))]
    product = (
        root / "sys/devices/virtual/dmi/id/product_name"
    )  # of a cloud that writes it there: its name of the instance
    instance = product.read_text().strip() if product.is_file() else ""
    for row in machines().values():
        if instance and row.title.startswith(f"{instance},"):
            return row
        if row.kind == "cuda" and len(cards) == row.devices and all(_is_card(row.device, said) for said in cards):
            return row
    return None


def _words(text: str) -> set[str]:
    """`NVIDIA A100-SXM4-80GB` -> nvidia, a100, sxm4, 80, gb."""
    return set(re.findall(r"[a-z]+\d*[a-z]*|\d+", text.lower().replace("gb", " gb ")))


def _is_card(device: str, said: set[str]) -> bool:
    """Whether a driver's words mean the device of a row; the memory has to fit where the driver names it."""
    named, _, memory = device.removesuffix(" GB").rpartition(" ")
    # The socket is no part of the name: drivers write SXM4 where the table has SXM.
    chip = {word for word in _words(named) if not word.startswith("sxm")} - {"nvidia"}
    return chip <= said and ("gb" not in said or memory in said)


def parse_price(value: str | float) -> float:
    """Dollars per hour from `2.49/h`, `$2.49/h`, `0.04/min`, or a number that already is dollars per hour.

    Raises:
        UserError: anything else, or a negative or infinite amount.
    """
    if isinstance(value, int | float) and not isinstance(value, bool):
        if not 0 <= value < math.inf:
            raise UserError(f"a price must be a finite number of at least 0, got {value}.")
        return float(value)
    match = _PRICE.fullmatch(value.strip()) if isinstance(value, str) else None
    seconds = SECONDS_PER.get((match[2] or "h").lower()) if match else None
    if match is None or seconds is None:
        raise UserError(f"{value!r} is not a price.", "Write dollars per time: 2.49/h, $2.49/h, 0.04/min.")
    return float(match[1]) * (SECONDS_PER["h"] / seconds)


OLD_MONTHS = 6
"""Prices of cloud machines change about twice a year: an older one is said to be old."""


def price_note(machine_name: str | None, stated: str | float | None, today: datetime.date) -> str | None:
    """Where a price of the table is from and when it was valid; with a word where that is more than half a year ago.

    Args:
        stated: a price that somebody wrote down; then the table's is not used, and there is nothing to say.
    """
    if machine_name is None or stated is not None:
        return None
    row = machine(machine_name)
    if not row.dollars_per_hour:
        return None
    told = f"price of {row.name}: ${row.dollars_per_hour:g} per hour, as of {row.as_of} ({row.source.rstrip('.')})"
    months = _months_since(row.as_of, today)
    if months is None or months <= OLD_MONTHS:
        return told
    return f"{told}; that is {months} months ago: look it up, and give it with --price."


def _months_since(as_of: str, today: datetime.date) -> int | None:
    """From `YYYY-MM` (or longer); None where it is no date."""
    match = re.match(r"(\d{4})-(\d{2})", as_of)
    return None if match is None else 12 * (today.year - int(match[1])) + today.month - int(match[2])


def find_price(
    price: str | float | None = None, machine_name: str | None = None, user_file: str | Path | None = None
) -> float:
    """Dollars per hour: the stated price if there is one, else the machine's, else 0 (money is not counted)."""
    if price is not None:
        return parse_price(price)
    return machine(machine_name, user_file).dollars_per_hour if machine_name else 0.0
