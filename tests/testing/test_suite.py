"""The public suite is importable, runs a method of a third party, and fails when a method breaks its promises."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

METHOD = '''
"""A method in one file, in nobody's package."""
import torch
from torch import nn

from dollartune.methods.base import Capabilities, Method, SiteMethodConfig
from dollartune.methods.edits import Delta
from dollartune.methods.space import LogUniform


class GainConfig(SiteMethodConfig):
    """One trained number per linear."""

    where: str = "mlp.down"
    """Linears to scale."""


class Scale(Delta):
    def __init__(self, site):
        super().__init__()
        self.ramp = torch.linspace(-1, 1, site.out_features)
        self.gain = nn.Parameter(torch.{start}(1, 1))
{more}

    def delta(self, x, rows):
        return x.mean(-1, keepdim=True) * self.gain{detached}.to(x.dtype) * self.ramp.to(x)


class Gain(Method[GainConfig]):
    """y + g · mean(x) · ramp."""

    name = "gain"
    branch = "reparameterization"
    Config = GainConfig
    kinds = ("linear",)
    capabilities = Capabilities(mergeable={mergeable}, peft_type={peft})
    search = {{"lr": LogUniform(1e-4, 1e-1)}}

    def edit(self, site, shared, module):
        return Scale(site)

    def count(self, site):
        return {count}
'''

TESTS = """
from gain import Gain

from dollartune.testing import MethodSuite


class TestGain(MethodSuite):
    method = Gain()
    families = ("opt", "bert", "vit")
    overfit_drop = 0.0001
"""

GOOD = {"start": "zeros", "detached": "", "mergeable": "False", "count": "1", "more": "", "peft": "None"}


class Outcomes:
    """Collects what pytest reports."""

    def __init__(self) -> None:
        self.failed: set[str] = set()
        self.passed: set[str] = set()
        self.messages = ""

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        name = report.nodeid.split("::")[-1].split("[")[0]
        if report.failed:
            self.failed.add(name)
            self.messages += f"{report.nodeid}: {report.longreprtext}\n"
        elif report.when == "call" and report.passed:
            self.passed.add(name)


def run(folder: Path, monkeypatch: pytest.MonkeyPatch, only: str = "", **changes: str) -> Outcomes:
    """Runs the suite, or one check of it, on the method, some of its text changed."""
    (folder / "gain.py").write_text(METHOD.format(**{**GOOD, **changes}))
    (folder / "test_gain.py").write_text(TESTS)
    monkeypatch.syspath_prepend(str(folder))
    for name in ("gain", "test_gain"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    outcomes = Outcomes()
    pytest.main(
        [
            "-q",
            "--rootdir",
            str(folder),
            "-c",
            "/dev/null",
            "-p",
            "no:cacheprovider",
            # At its end it collects garbage, several times: in a process that has run a thousand tests that takes seconds.
            "-p",
            "no:unraisableexception",
            "-p",
            "no:threadexception",
            "-k",
            only,
            str(folder / "test_gain.py"),
        ],
        plugins=[outcomes],
    )
    for name in ("gain", "test_gain"):
        sys.modules.pop(name, None)
    return outcomes


def test_a_third_partys_method_passes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    outcomes = run(tmp_path, monkeypatch)
    assert not outcomes.failed, outcomes.messages
    assert len(outcomes.passed) >= 15


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"start": "ones"}, "test_starts_at_the_backbone"),
        ({"start": "randn"}, "test_starts_at_the_backbone"),
        ({"count": "2"}, "test_count_formula"),
        ({"detached": ".detach()"}, "test_gradients_reach_what_is_declared"),
        ({"mergeable": "True"}, "test_merged_equals_adapter"),
        (
            {"count": "2", "more": "        self.unused = nn.Parameter(torch.zeros(1, 1))"},
            "test_gradients_reach_what_is_declared",
        ),
        ({"peft": "'LORA'"}, "test_exchange_with_peft_somewhere"),
    ],
)
def test_a_broken_promise_fails_its_check(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, str], expected: str
) -> None:
    outcomes = run(tmp_path, monkeypatch, only=expected, **changes)
    assert expected in outcomes.failed, outcomes.messages
