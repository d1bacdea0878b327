"""Is one architecture read as what it is, and does every method that has a meaning work on it?

    python tools/architectures/sweep.py FOLDER [--method NAME ...]

kind        what its papers say: in a decoder no logit moves when a later token changes, in an encoder some do
inputs      logits by token ids and by embeddings are equal, where virtual tokens are offered
reach       every linear and every tensor of experts of its layers that a pass calls has a site, and `lora: all_linear`
            is on all of them
METHOD      with random values in all of its tensors, each gets a gradient; a row's result does not depend on the padding
            beside it; the merged weights give the same logits, and would not without the adapter; peft loads what export
            writes and gives the same; taking it off leaves every weight bit for bit
head        the head for classes trains (where transformers has one for the family)
probe       a probe solved on features of rows of different length: each row's scores in a batch are those of the row alone
labels, few-shot, texts, server   as in `neighbours.py`: no row depends on those beside it, in batches of 1, 8 and 32
generate    greedy tokens in a padded batch, with a cache, are those of whole passes without one

A refusal has to be in `refusals.py` with its reason, and what is there has to be refused.
"""

from __future__ import annotations

import argparse
import copy
import logging
import sys
import tempfile
import traceback
import warnings
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers.pytorch_utils import Conv1D

sys.path.insert(0, str(Path(__file__).parent))

import neighbours
from make_models import RECIPES
from refusals import IDLE, KNOWN, REFUSALS

from dollartune import attach, load_backbone
from dollartune.attachment.attached import Attached
from dollartune.attachment.merging import merge
from dollartune.backbones.anatomy import weight_shape
from dollartune.backbones.marks import decoder_start
from dollartune.backbones.module_outputs import states_of
from dollartune.errors import UserError
from dollartune.evaluate.labels import class_log_probabilities
from dollartune.export.peft_format import write_peft
from dollartune.export.scoring import real_places, sample_inputs
from dollartune.methods.features import LabelledFeatures
from dollartune.methods.registry import build_method, methods
from dollartune.train.encoding import Encoded
from dollartune.train.features import FeatureStore

METHODS: dict[str, dict[str, Any]] = {
    "lora": {"method": "lora"},
    "lora, all linears": {"method": "lora", "where": "all_linear"},
    "dora": {"method": "dora"},
    "adalora": {"method": "adalora"},
    "ia3": {"method": "ia3"},
    "bitfit": {"method": "bitfit"},
    "norm": {"method": "norm"},
    "houlsby": {"method": "houlsby", "activation": "tanh"},
    "parallel": {"method": "parallel", "activation": "tanh"},
    "prefix": {"method": "prefix", "tokens": 3},
    "prompt": {"method": "prompt", "tokens": 3},
    "full": {"method": "full"},
}
"""Bottlenecks with tanh: of two relu units, as narrow layers have them, both may be dead for all of a few tokens."""
NEW_TOKENS = 8


@dataclass
class Report:
    """Results of one architecture, in order."""

    name: str
    rows: list[tuple[str, str, str]] = field(default_factory=list)
    """(check, ok | refused | known | WRONG | CRASH, detail)"""

    def run(self, check: str, what: Callable[[], str], kind: str = "") -> bool:
        """Runs a check that returns its detail; what it refuses has to be in the table."""
        expected = next(
            (REFUSALS[key] for key in ((check, self.name), (check, kind), (check, "*")) if key in REFUSALS), None
        )
        try:
            detail = what()
            stale = expected is not None and (check, self.name) in REFUSALS
            self.add(check, "WRONG" if stale else "ok", "the table says that it is refused" if stale else detail)
            return not stale
        except UserError as error:
            known = expected is not None and expected in str(error)
            self.add(check, "refused" if known else "WRONG", str(error) if known else f"refused: {error}")
        except AssertionError as error:
            known_fault = KNOWN.get((check, self.name))
            self.add(check, "known" if known_fault else "WRONG", known_fault or str(error))
        except Exception as error:
            at = traceback.extract_tb(error.__traceback__)[-1]
            self.add(check, "CRASH", f"{type(error).__name__}: {error} ({Path(at.filename).name}:{at.lineno})")
        return False

    def add(self, check: str, result: str, detail: str) -> None:
        self.rows.append((check, result, " ".join(detail.split())))

    @property
    def faults(self) -> list[tuple[str, str, str]]:
        return [row for row in self.rows if row[1] in ("WRONG", "CRASH")]

    def count(self, result: str) -> int:
        return sum(row[1] == result for row in self.rows)


class Sweep:
    """All checks of one loaded backbone."""

    def __init__(self, backbone: Any, report: Report) -> None:
        self.backbone, self.report = backbone, report
        self.model, self.anatomy = backbone.model, backbone.anatomy
        self.kind = backbone.anatomy.kind
        self.language = backbone.objective == "language"
        self.inputs = sample_inputs(backbone)
        self.unreached = self.noted_roles()
        self.before = {name: weight.clone() for name, weight in self.model.state_dict().items()}
        self.bare: Tensor = self.logits(None)
        self.padding_matters = 0.0

    def logits(self, attached: Attached | None, inputs: dict[str, Tensor] | None = None) -> Tensor:
        """(rows, classes), or (real tokens, vocabulary)."""
        inputs = self.inputs if inputs is None else inputs
        holder = attached or Attached(self.model, self.anatomy)
        try:
            if not self.language:
                return holder(**inputs).logits.float()
            return holder(keep=real_places(inputs), **inputs).logits[0].float()
        finally:
            if attached is None:
                holder.detach()

    def noted_roles(self) -> tuple[str, ...]:
        """Sites, by name and by module, of which the anatomy says that no gradient reaches them."""
        noted = next((note for note in self.anatomy.notes if note.startswith("no gradient reaches")), "")
        roles = set(noted.removeprefix("no gradient reaches ").partition(" in a short pass")[0].split(", "))
        return tuple(name for s in self.anatomy.sites if s.role in roles for name in (f"{s.name}.", f"{s.exit}."))

    # The bare backbone

    def check_kind(self, wanted: str) -> str:
        assert self.kind == wanted, f"read as {self.kind}; it is a {wanted}"
        assert bool(torch.isfinite(self.bare).all()), "logits are not finite"
        if self.kind in ("decoder", "encoder"):
            ids = torch.randint(5, 500, (1, 8), generator=torch.Generator().manual_seed(0))
            other = ids.clone()
            other[0, -1] = (other[0, -1] + 7) % 490 + 5
            base = self.model.base_model
            with torch.no_grad():
                a, b = (base(**{base.main_input_name: given})[0] for given in (ids, other))
            moved = float((a[:, :-1] - b[:, :-1]).abs().max())
            assert (moved > 1e-4) == (self.kind == "encoder"), (
                f"read as {self.kind}; a later token moves states by {moved:.2g}"
            )
        return f"{self.kind}, {'structure' if self.anatomy.family.guessed else 'family file'}"

    def check_inputs(self) -> str:
        if self.kind == "vision" or not self.anatomy.at("input"):
            return "nothing offered"
        site = self.anatomy.at("input")[0]
        given = dict(self.inputs)
        embedded = states_of(self.model.get_submodule(site.exit)(given.pop("input_ids")))
        with torch.no_grad():
            plain = self.model(**self.inputs).logits
            by_embeddings = self.model(inputs_embeds=embedded, **given).logits
        rows = self.inputs["attention_mask"].bool().all(1)  # a padded row of a classifier is found by its ids
        moved = float((plain - by_embeddings)[rows].abs().max())
        assert moved < 1e-4, f"logits by ids and by embeddings differ by {moved:.2g}"
        return f"differ by {moved:.0e}"

    def check_reach(self) -> str:
        called: dict[str, int] = {}
        handles = [
            module.register_forward_hook(lambda m, a, o, name=name: called.__setitem__(name, 1))
            for name, module in self.model.named_modules()
        ]
        with torch.no_grad():
            self.model(**self.inputs)
        for handle in handles:
            handle.remove()
        layers = [site.exit for site in self.anatomy.at("layer")]
        picking = any("some of a batch's tokens" in note for note in self.anatomy.notes)
        wanted = set()
        for name, module in self.model.named_modules():
            if name in called and any(name.startswith(f"{layer}.") for layer in layers):
                if picking and "expert" in name:
                    continue
                plain = type(module).forward in (nn.Linear.forward, Conv1D.forward)  # Llama 4's router does more
                if weight_shape(module) is not None and plain:
                    wanted.add((name, "weight"))
                single = getattr(module, "groups", 1) > 1
                wanted |= {
                    (name, p) for p, t in module.named_parameters(recurse=False)
                    if t.dim() == 3 and t.shape[0] > 1 and "expert" in name and not single
                }  # fmt: skip
        sited = {
            (site.exit, site.parameter or "weight") for site in self.anatomy.sites if site.kind in ("linear", "weights")
        }
        assert not wanted - sited, f"no role names {sorted(wanted - sited)[:3]}"
        lora = build_method(METHODS["lora, all linears"])
        reached = {(site.exit, site.parameter or "weight") for site in lora.sites(self.anatomy)}
        assert not wanted - reached, f"lora on all linears leaves out {sorted(wanted - reached)[:3]}"
        tensors = sum(parameter != "weight" for _, parameter in reached)
        return f"{len(reached)} of {len(wanted)} linears and tensors, {tensors} by weights"

    # Methods

    def loss(self, attached: Attached) -> Tensor:
        logits = self.logits(attached)
        return functional.cross_entropy(logits, torch.arange(len(logits)) % min(3, logits.shape[1]))

    @torch.no_grad()
    def padding(self, attached: Attached) -> float:
        """By how much the last row's logits change when it stands alone, without padding."""
        mask = self.inputs.get("attention_mask")
        if mask is None or "decoder_input_ids" in self.inputs:
            return 0.0
        real = int(mask[-1].sum())
        alone = {name: value[-1:, :real] for name, value in self.inputs.items()}
        together, single = self.logits(attached), self.logits(attached, alone)
        together = together[-real:] if self.language else together[-1:]
        return float((together - single).abs().max())

    def untouched(self) -> bool:
        after = self.model.state_dict()
        return after.keys() == self.before.keys() and all(torch.equal(self.before[k], after[k]) for k in after)

    def check_method(self, label: str) -> None:
        setting = METHODS[label]
        kept: dict[str, Any] = {}

        def works() -> str:
            attached = attach(self.model, build_method(setting))
            try:
                kept["adapter"] = adapter = attached.adapters["default"]
                trained = adapter.trainable()
                assert trained, "nothing is trained"
                with torch.no_grad():
                    draw = torch.Generator().manual_seed(1)
                    for weight in trained.values():
                        weight.add_(torch.randn(weight.shape, generator=draw) * (0.01 if label == "full" else 0.1))
                loss = self.loss(attached)
                assert bool(torch.isfinite(loss)), "the loss is not finite"
                loss.backward()
                idle = [name for name, p in trained.items() if p.grad is None or not bool(p.grad.any())]
                idle = [name for name in idle if not self.is_idle(name)]
                assert not idle, f"{len(idle)} of {len(trained)} tensors get no gradient, such as {idle[0]}"
                with torch.no_grad():
                    kept["logits"] = self.logits(attached)
                effect = float((kept["logits"] - self.bare).abs().max())
                assert effect > 1e-4 * float(self.bare.abs().max()), "the adapter changes nothing"
                moved = self.padding(attached)
            finally:
                attached.detach()
            assert self.untouched(), "the backbone's weights differ after detach"
            assert moved <= max(1e-3, 2 * self.padding_matters), f"padding moves the logits by {moved:.1e}"
            return f"{len(list(adapter.items()))} sites, {adapter.count():,} parameters, effect {effect:.2g}"

        if not self.report.run(label, works, self.kind):
            return
        adapter, able = kept["adapter"], methods()[build_method(setting).name].capabilities
        if able.mergeable:
            self.report.run(f"{label}: merged", lambda: self.merged(adapter, kept["logits"]), self.kind)
        if able.peft_type:
            self.peft(label, adapter)

    def is_idle(self, tensor: str) -> bool:
        """Whether a tensor cannot get a gradient from these few inputs: an expert that no token chose, a position that
        none has, or weights for words and pictures that are not there (full tuning)."""
        name = tensor.replace("/", ".")
        usual = ("expert", "position", "token_type", "pooler", "mask_token", "rel_", "seg")
        return any(part in name for part in (*usual, *self.unreached, *IDLE.get(self.report.name, ())))

    @torch.no_grad()
    def merged(self, adapter: Any, expected: Tensor) -> str:
        model = copy.deepcopy(self.model)
        merge(model, self.anatomy, adapter)
        bare, self.model = self.model, model
        try:
            moved = float((self.logits(None) - expected).abs().max())
        finally:
            self.model = bare
        effect = float((expected - self.bare).abs().max())
        assert moved < 1e-3 * max(1.0, effect), f"merged logits differ by {moved:.1e} of an effect of {effect:.1e}"
        return f"differ by {moved:.0e} of an effect of {effect:.1e}"

    def peft(self, label: str, adapter: Any) -> None:
        """Export to peft may be refused, with a sentence; what is written has to give the same."""
        try:
            with tempfile.TemporaryDirectory() as folder:
                written = write_peft(Path(folder), self.backbone, adapter)
            self.report.add(f"{label}: peft", "ok", f"{written.peft_type}, differ by {written.peft_difference:.0e}")
        except UserError as error:
            self.report.add(f"{label}: peft", "refused", str(error))
        except Exception as error:
            self.report.add(f"{label}: peft", "CRASH", f"{type(error).__name__}: {error}")

    # Scores and text

    def check_generation(self, setting: dict[str, Any] | None) -> str:
        draw = torch.Generator().manual_seed(3)
        rows = [torch.randint(5, 500, (length,), generator=draw) for length in (9, 6)]
        settings = self.model.generation_config
        settings.forced_bos_token_id = settings.forced_eos_token_id = None
        ends = settings.eos_token_id
        ends = ends if isinstance(ends, list) else [2 if ends is None else ends]
        attached = Attached(self.model, self.anatomy) if setting is None else attach(self.model, build_method(setting))
        try:
            if setting is not None:
                torch.manual_seed(1)
                with torch.no_grad():
                    for weight in attached.adapters["default"].trainable().values():
                        weight.add_(torch.randn_like(weight) * 0.3)
            expected = [self.by_whole_passes(attached, row, ends) for row in rows]
            pad = getattr(self.model.config, "pad_token_id", None) or 0
            short, rest = rows[1], torch.full((3,), pad)
            left = self.kind == "decoder"
            ids = torch.stack([rows[0], torch.cat([rest, short] if left else [short, rest])])
            mask = (torch.arange(9) >= 3 if left else torch.arange(9) < 6).long()
            with torch.no_grad():
                got = attached.generate(
                    input_ids=ids, attention_mask=torch.stack([torch.ones(9, dtype=torch.long), mask]),
                    max_new_tokens=NEW_TOKENS, min_new_tokens=NEW_TOKENS, do_sample=False, suppress_tokens=ends,
                )  # fmt: skip
        finally:
            attached.detach()
        for number, (row, wanted) in enumerate(zip(got, expected, strict=True), 1):
            assert row[-NEW_TOKENS:].tolist() == wanted, f"row {number}: {row[-NEW_TOKENS:].tolist()}, not {wanted}"
        return f"2 rows of {NEW_TOKENS} tokens"

    @torch.no_grad()
    def by_whole_passes(self, attached: Attached, row: Tensor, ends: list[int]) -> list[int]:
        two = self.kind == "encoder_decoder"
        written = [decoder_start(self.model)] if two else row.tolist()
        start = len(written)
        for _ in range(NEW_TOKENS):
            so_far = torch.tensor([written])
            last = (torch.zeros(1, dtype=torch.long), torch.tensor([len(written) - 1]))
            given: dict[str, Tensor] = {"input_ids": so_far, "attention_mask": torch.ones_like(so_far)}
            if two:
                given = {
                    "input_ids": row[None],
                    "attention_mask": torch.ones_like(row)[None],
                    "decoder_input_ids": so_far,
                }
            logits = attached(keep=last, **given).logits[0][0].clone()
            logits[ends] = float("-inf")
            written.append(int(logits.argmax()))
        return written[start:]


def judge(
    folder: Path, labels: Collection[str] = tuple(METHODS), batches: Sequence[int] = neighbours.BATCHES
) -> Report:
    """Every check of one architecture; the folder's name is its recipe's, if it has one.

    Args:
        labels: those of `METHODS` that are attached; the other checks are made whatever they are.
    """
    report = Report(folder.name)
    loaded: list[Any] = []
    recipe = RECIPES.get(folder.name)

    def load() -> str:
        backbone = load_backbone(str(folder), None, ())
        if backbone.objective == "classification":
            backbone = load_backbone(str(folder), "classification", ("a", "b", "c"))
        loaded.append(backbone)
        return type(backbone.model).__name__

    if not report.run("load", load):
        return report
    torch.manual_seed(0)
    if why := loaded[0].anatomy.family.refusals.get("training"):
        for label in labels:
            report.run(label, lambda label=label: str(attach(loaded[0].model, build_method(METHODS[label]))))
        report.add("training", "refused", why)
    try:
        sweep = Sweep(loaded[0], report)
    except Exception as error:
        report.add("bare", "CRASH", f"{type(error).__name__}: {error}")
        return report
    if recipe is not None:
        report.run("kind", lambda: sweep.check_kind(recipe.kind))
    report.run("inputs", sweep.check_inputs)
    report.run("reach", sweep.check_reach)
    bare = Attached(sweep.model, sweep.anatomy)
    sweep.padding_matters = sweep.padding(bare)
    bare.detach()
    if any("padding beside it" in note for note in sweep.anatomy.notes):
        report.add("padding", "ok", f"said: it moves the bare logits by {sweep.padding_matters:.1e}")
        sweep.padding_matters = float("inf")
    elif sweep.padding_matters > 1e-3:
        report.add("padding", "WRONG", f"it moves the bare logits by {sweep.padding_matters:.1e}, unsaid")
    trainable = "training" not in loaded[0].anatomy.family.refusals
    for label in labels if trainable else ():
        sweep.check_method(label)
    report.run("head", lambda: head(folder))
    report.run("probe", lambda: probe(folder))
    if sweep.language:
        for check, run in neighbours.CHECKS.items():
            report.run(check, lambda run=run: run(sweep.backbone, folder, batches))
        for label in (None, "lora", "prefix", "prompt"):
            if label is None or any(check == label and result == "ok" for check, result, _ in report.rows):
                report.run(
                    f"generate, {label or 'bare'}", lambda label=label: sweep.check_generation(label and METHODS[label])
                )
    return report


def head(folder: Path) -> str:
    """The head for three classes gets a gradient, and nothing else is trained."""
    backbone = load_backbone(str(folder), "classification", ("a", "b", "c"))
    sweep = Sweep(backbone, Report(folder.name))
    attached = attach(backbone.model, build_method("head"))
    trained = attached.adapters["default"].trainable()
    with torch.no_grad():
        for weight in trained.values():
            weight.add_(torch.randn_like(weight) * 0.1)
    sweep.loss(attached).backward()
    idle = [name for name, p in trained.items() if p.grad is None or not bool(p.grad.any())]
    attached.detach()
    assert not idle, f"{idle} get no gradient"
    assert sweep.untouched(), "the backbone's weights differ after detach"
    return f"{type(backbone.model).__name__}, {len(trained)} tensors"


def probe(folder: Path) -> str:
    """A solved probe tells rows of its own two classes apart, and its scores do not depend on what is beside a row."""
    backbone = load_backbone(str(folder), "classification", ("a", "b"))
    draw = torch.Generator().manual_seed(7)
    rows = []
    for number in range(12):
        low = 5 + 240 * (number % 2)  # one class has the words of one half of the vocabulary
        if backbone.kind == "vision":
            shape = sample_inputs(backbone)["pixel_values"].shape[1:]
            pixels = torch.randn(shape, generator=draw) * 0.3 + number % 2
            rows.append(Encoded(str(number), label=number % 2, pixels=pixels))
        else:
            ids = torch.randint(low, low + 240, (5 + number,), generator=draw).tolist()
            rows.append(Encoded(str(number), tuple(ids), label=number % 2))
    attached = attach(backbone.model, build_method({"method": "linear_probe", "C": 10.0}))
    try:
        adapter = attached.adapters["default"]
        pooling = adapter.readout.pooling
        together = FeatureStore().features(backbone, attached, rows, pooling, batch_size=12)
        alone = torch.cat([FeatureStore().features(backbone, attached, [row], pooling) for row in rows])
        moved = float((together - alone).abs().max() / alone.abs().max().clamp_min(1e-6))
        noted = any("padding beside it" in note for note in backbone.anatomy.notes)
        assert moved < 1e-3 or noted, f"features of a batch and of rows alone differ by {moved:.2g}"
        labels = torch.tensor([row.label for row in rows])
        part = adapter.parts[0]
        part.method.solve(part, LabelledFeatures(together, labels, 2))
        scores = class_log_probabilities(backbone, attached, "default", rows, batch_size=5)
        right = int((scores.argmax(-1) == labels).sum())
        assert right > 9, f"{right} of its own 12 rows are told apart"
    finally:
        attached.detach()
    return f"{'+'.join(pooling)}, {right} of 12 rows, {moved:.0e} from rows alone"


def quiet() -> None:
    """One thread, and no words but ours."""
    warnings.simplefilter("ignore")
    logging.getLogger("dollartune").setLevel(logging.ERROR)
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    torch.set_num_threads(1)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--method", action="append", choices=tuple(METHODS), help="attach only these; default: all")
    given = parser.parse_args()
    quiet()
    report = judge(given.model, given.method or tuple(METHODS))
    for check, result, detail in report.rows:
        print(f"{check:26s} {result:8s} {detail}"[:240])
    return int(bool(report.faults))


if __name__ == "__main__":
    sys.exit(main())
