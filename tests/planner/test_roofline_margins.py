"""What a machine is supposed to do per second before anything was measured on it, and how measurements are weighed."""

from __future__ import annotations

import pytest

from dollartune.budget.prices import machine
from dollartune.planner.op_trace import Kernel, Work
from dollartune.planner.roofline import Speed, core_speed, fitted, machine_speed

A100 = machine("a100-80gb")
SMALL_HOST = machine("cpu-2")


# What a machine does per second before anything was measured on it


def test_a_gpu_gives_half_of_its_data_sheet_to_training_and_less_to_attention() -> None:
    speed = machine_speed(A100)
    assert speed.matrix_half == pytest.approx(156e12)
    assert speed.matrix_single == pytest.approx(13.65e12)
    assert speed.attention_share == 0.6
    assert speed.bytes_per_second == pytest.approx(0.7 * 2039e9, rel=0.01)
    assert speed.slow_per_second == pytest.approx(0.1 * 2039e9, rel=0.01)
    assert speed.launch_seconds == pytest.approx(9e-6)
    assert speed.direct_gain == 1.0, "oneDNN is a processor's"
    assert speed.uncertainty == 0.5


def test_a_rented_processor_gives_less_than_half_of_its_data_sheet() -> None:
    speed = machine_speed(SMALL_HOST)
    assert speed.matrix_half == pytest.approx(0.036e12)
    assert speed.matrix_single == pytest.approx(0.045e12)
    assert speed.attention_share == 0.3
    assert speed.bytes_per_second == pytest.approx(3e9, rel=0.1)
    assert speed.slow_per_second == pytest.approx(0.4e9), "two vCPUs are one core"
    assert speed.launch_seconds == pytest.approx(12e-6)
    assert speed.uncertainty == 0.6


def test_an_unknown_processor_is_a_server_core_times_its_threads() -> None:
    two, eight = core_speed(2, half=True), core_speed(8, half=False)
    assert (two.matrix_half, eight.matrix_half) == (300e9, 320e9)
    assert (two.matrix_single, eight.matrix_single) == (120e9, 480e9)
    assert (two.bytes_per_second, eight.bytes_per_second) == (12e9, 24e9), "four cores fill the memory's channels"
    assert (two.slow_per_second, eight.slow_per_second) == (1e9, 4e9)
    assert two.launch_seconds == eight.launch_seconds == pytest.approx(12e-6), "one thread launches"
    assert (two.attention_share, two.direct_gain, two.uncertainty) == (0.4, 1.5, 0.6)


def test_a_view_is_less_than_half_a_launch_and_kernels_of_each_kind_have_their_rate() -> None:
    speed = Speed(8e9, 4e9, 0.5, 1e30, 1e9, 1e-3, direct_gain=2.0)

    def seconds(kind: str, dtype: str = "float32") -> float:
        return speed.seconds(Work({Kernel(kind, dtype, 4 * 10**9, 0): 1}))

    assert seconds("view") == pytest.approx(0.4e-3)
    assert seconds("plain") == pytest.approx(1e-3), "only its bytes count"
    assert seconds("matrix") == pytest.approx(1.001)
    assert seconds("matrix", "bfloat16") == pytest.approx(0.501)
    assert seconds("attention") == pytest.approx(2.001)
    assert seconds("attention", "bfloat16") == pytest.approx(1.001)
    assert seconds("slow") == seconds("slow", "bfloat16") == pytest.approx(4.001)
    assert seconds("direct") == pytest.approx(0.501)
    assert seconds("direct", "bfloat16") == pytest.approx(0.501), "torch goes to oneDNN there by itself"


def products(count: int, flops: int) -> Work:
    return Work({Kernel("matrix", "float32", flops, 1): count})


def test_a_fit_weighs_measurements_against_the_data_sheet_by_how_exact_each_is() -> None:
    """Passes that are all products, 1.5 times as long as the prior says: between the two, where the weighted errors are least."""
    prior = core_speed(1, False)
    works = [products(10, 10**11), products(20, 10**11)]
    seconds = [1.5 * prior.seconds(work) for work in works]
    speed = fitted(prior, works, seconds, "made up")
    # log 1.5 is shared by one number and two passes: the number takes 2 / s^2 / (2 / s^2 + 1 / p^2) of it, s = 0.06, p = 0.5
    moved = 2 / 0.06**2 / (2 / 0.06**2 + 1 / 0.5**2)
    assert speed.matrix_single == pytest.approx(prior.matrix_single / 1.5**moved, rel=1e-4)
    assert speed.matrix_half == pytest.approx(prior.matrix_half), "nothing was said of it"
    assert speed.uncertainty == pytest.approx(0.15), "a few passes prove no more, however well they fit"


@pytest.mark.parametrize(("spread", "uncertainty"), [(1.2, 0.365), (2.0, 0.5)])
def test_passes_that_contradict_one_another_leave_a_fit_uncertain(spread: float, uncertainty: float) -> None:
    prior = core_speed(1, False)
    same = products(10, 10**11)
    seconds = prior.seconds(same)
    speed = fitted(prior, [same, same], [seconds * spread, seconds / spread], "made up")
    assert speed.uncertainty == pytest.approx(
        uncertainty, abs=0.005
    )  # two deviations of log 1.2; never more than a half
