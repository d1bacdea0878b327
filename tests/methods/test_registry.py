"""Finding methods: by being there, by alias, by an entry point of another package; and how a method is written down."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from dollartune.errors import UserError
from dollartune.evidence import findings
from dollartune.methods import registry
from dollartune.methods.lora import LoRA
from dollartune.methods.registry import build_method, method_class, methods


def test_every_method_of_the_literature_is_there() -> None:
    named = {finding.method for finding in findings()} - {"majority_class"}  # a baseline, no method
    assert len(named) >= 10
    for name in named:
        method_class(name)  # raises with the nearest name


def test_every_file_of_the_package_that_defines_a_method_is_registered() -> None:
    """Found by reading the files, so that a class that the registry overlooks is missed by name."""
    package = Path(registry.__file__).parent
    declared = {
        match[1]
        for path in package.glob("*.py")
        for match in re.finditer(r'^    name = "(\w+)"$', path.read_text(encoding="utf8"), re.MULTILINE)
    }
    assert declared == set(methods())


def test_no_two_methods_share_a_name() -> None:
    assert len({alias for found in methods().values() for alias in (found.name, *found.aliases)}) == sum(
        1 + len(found.aliases) for found in methods().values()
    ), "two methods share an alias"


@pytest.mark.parametrize(
    ("said", "meant"), [("LoRA", "lora"), ("layer-norm", "norm"), ("SAID", "intrinsic"), ("(IA)3", "ia3")]
)
def test_other_ways_to_say_it(said: str, meant: str) -> None:
    assert method_class(said).name == meant


@pytest.mark.parametrize(
    "spec",
    ["lora(rank=4, where='mlp')", {"lora": {"rank": 4, "where": "mlp"}}, {"method": "lora", "rank": 4, "where": "mlp"}],
)
def test_three_ways_to_write_a_method(spec: object) -> None:
    found = build_method(spec)  # type: ignore[arg-type]
    assert isinstance(found, LoRA)
    assert (found.config.rank, found.config.where) == (4, "mlp")


def test_a_name_that_means_settings_brings_them() -> None:
    assert build_method("rsLoRA").config.rank_stabilized
    assert build_method("PiSSA(rank=2)").config.init == "pissa"
    assert build_method("lora_plus").config.lr_ratio == 16.0
    assert build_method({"lora-plus": {"lr_ratio": 4.0}}).config.lr_ratio == 4.0
    assert build_method("t_few").config.two_vectors
    assert not build_method("did").config.structure_aware
    assert not build_method("lora").config.rank_stabilized
    for found in methods().values():
        assert set(found.presets) <= set(found.aliases)
        for settings in found.presets.values():
            found(**settings)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("lorra", "Did you mean 'lora'"),
        ("lora(rnk=4)", "no setting 'rnk'. Did you mean 'rank'"),
        ("lora(rank='four')", "setting 'rank'"),
        ("lora(rank=0)", "setting 'rank'"),
        ("lora(rank=", "is not understood"),
        ({"lora": 4}, "takes a mapping"),
    ],
)
def test_mistakes_are_named(spec: object, message: str) -> None:
    with pytest.raises(UserError) as error:
        build_method(spec)  # type: ignore[arg-type]
    assert message in str(error.value)


@pytest.fixture
def other_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A package that is installed as far as Python can tell: a module and its entry points."""
    info = tmp_path / "gain-0.1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: gain\nVersion: 0.1\n")
    (info / "entry_points.txt").write_text("[dollartune.methods]\ngain = gain:Gain\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    methods.cache_clear()
    yield tmp_path
    methods.cache_clear()
    sys.modules.pop("gain", None)


METHOD = """
from dollartune.methods.bitfit import BitFit

class Gain(BitFit):
    name = "{name}"
    aliases = ()
"""


def test_a_method_of_another_package_is_found(other_package: Path) -> None:
    (other_package / "gain.py").write_text(METHOD.format(name="gain"))
    assert "gain" in methods()
    assert build_method("gain(where='mlp')").describe()["where"] == "mlp"


def test_two_methods_of_one_name_are_refused(other_package: Path) -> None:
    (other_package / "gain.py").write_text(METHOD.format(name="lora"))
    with pytest.raises(UserError, match="two methods are called 'lora'"):
        methods()
