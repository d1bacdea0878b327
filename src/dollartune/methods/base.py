"""The contract of a tuning method: a config, the sites it edits, and one edit per site.

A method is one file. It says *what is added where* and nothing about model families, batches, devices or training loops:

    class BitFit(Method[BitFitConfig]):
        kinds = ("linear",)
        def edit(self, site, shared, module): return Bias(site.out_features)
        def count(self, site): return site.out_features

Everything else (attaching, rows of many adapters in one batch, merging, saving, racing, documentation) reads this.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Literal, Self, TypedDict, TypeVar, get_args

import torch
from pydantic import BaseModel, ConfigDict, ValidationError, field_validator
from torch import nn

from dollartune.backbones.anatomy import Anatomy, BackboneKind, Site, SiteKind
from dollartune.errors import UserError, nearest, should_be
from dollartune.methods.selection import NothingSelected, Selection

if TYPE_CHECKING:
    from dollartune.methods.baseline import Answerer, LabelledTexts
    from dollartune.methods.edits import Edit
    from dollartune.methods.exchange import ImportedPart, PeftCheckpoint, PeftPart
    from dollartune.methods.features import LabelledFeatures
    from dollartune.methods.rules import Facts
    from dollartune.methods.space import Space

Modality = Literal["text", "image"]
"""As `tasks.base`, which this module does not know."""

Branch = Literal["addition", "specification", "reparameterization", "in_context", "baseline"]
"""The three families of parameter-efficient tuning and in-context learning, as reference 004 divides the field; and what needs
no backbone."""


Reference = Literal[
    "untuned", "examples", "everything", "upper_layers", "low_rank", "head", "probe", "majority", "words"
]
"""What comparisons, tables and starts refer to: the backbone as it is; solved examples in the prompt; every weight tuned; those
of the upper layers; low-rank updates; the head trained; a linear head solved on frozen features; the commonest class; a
classifier that counts words."""


@dataclass(frozen=True)
class Prompting:
    """How an in-context method asks: what evaluation, the cost of a request and the plan need to know of it."""

    template: int = 0
    """Which of the task's prompts: 0 is its own, 1 and up are its other wordings."""
    calibrate: bool | Literal["training_rows"] = False
    """Divide label probabilities by those for a prompt without content, or by their geometric mean over training rows."""
    examples: int = 0
    """Solved examples before the question."""
    choose: Literal["balanced", "random", "similar"] = "balanced"
    """How they are drawn from the training rows."""
    separator: str = "\n\n"
    """Text between them."""


MOST = 2**63 - 1
"""What 64 bits hold."""


class Settings(BaseModel):
    """Base of all settings. A method that is not trained by steps (solved, in context) derives from it directly."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, allow_inf_nan=False, use_attribute_docstrings=True
    )

    @classmethod
    def __pydantic_init_subclass__(cls, **settings: Any) -> None:
        """A field that only changes its default keeps the meaning that it has where it was declared."""
        for name, field in cls.model_fields.items():
            if field.description is None:
                inherited = (getattr(base, "model_fields", {}).get(name) for base in cls.__mro__[1:])
                field.description = next((f.description for f in inherited if f is not None and f.description), None)

    @field_validator("*")
    @classmethod
    def _has_64_bits(cls, value: Any) -> Any:
        if isinstance(value, int) and abs(value) > MOST:
            raise ValueError(f"a whole number is at most {MOST:,}, as tensors count")
        return value

    def mistake(self, sites: Sequence[Site]) -> str | None:
        """Why these settings are a mistake at these sites although they would run, or None."""
        return None


HIGHEST_RATE = 10.0
"""Prompts are tuned at 0.3 and at times at 1; ten times that trains nothing."""


class MethodConfig(Settings):
    """Settings of methods that are trained by steps. Subclasses add their own and set `lr` to what the method needs."""

    lr: float = 1e-3
    """Peak learning rate of this method's tensors."""
    weight_decay: float = 0.0
    """Decoupled weight decay (AdamW)."""

    # By name and not by `Field`: methods declare `lr` anew for a default of their own, and would lose its bounds.
    @field_validator("lr", check_fields=False)
    @classmethod
    def _is_a_rate(cls, value: float) -> float:
        if not 0 < value <= HIGHEST_RATE:
            raise ValueError(f"a learning rate is above 0 and at most {HIGHEST_RATE:g}")
        return value

    @field_validator("weight_decay", check_fields=False)
    @classmethod
    def _is_a_decay(cls, value: float) -> float:
        if not 0 <= value <= 1:
            raise ValueError("a weight decay is 0 to 1")
        return value


class SiteMethodConfig(MethodConfig):
    """Settings of a method that can be put at a choice of sites."""

    where: str = "attention"
    """Roles to edit, for example `self_attn.q self_attn.v`, `attention -q`, `all_linear`."""
    layers: str = "all"
    """Layers to edit: all, first 50%, last 4, random 50%, every 2, 0-5,11."""
    stacks: str = "all"
    """Stacks to edit in encoder-decoder models: all, encoder, decoder."""


ConfigT = TypeVar("ConfigT", bound=Settings)


class ParameterGroup(TypedDict):
    """Parameters that are trained alike, as torch's optimizers take them."""

    params: list[nn.Parameter]
    lr: float
    weight_decay: float


@dataclass(frozen=True)
class Capabilities:
    """What the rest of the system may do with a method's adapter."""

    mergeable: bool = False
    """The adapter can be added into the weights exactly."""
    mixed_rows: bool = True
    """Rows of other adapters may share a batch with its rows (training cohorts and serving)."""
    trains: bool = True
    """False for in-context learning: nothing is trained."""
    solved: bool = False
    """What is trained is solved at once on features of the frozen backbone (`Method.solve`), not by steps of an optimizer."""
    baseline: bool = False
    """It answers without the backbone (`Method.fit`): what any other method should beat, and never called the best itself."""
    modalities: tuple[Modality, ...] = ("text", "image")
    """Rows that it can read, of a baseline."""
    identity: bool = True
    """A new adapter leaves the backbone's output as it is (prompts, prefixes and heads do not)."""
    stackable: bool = True
    """Many adapters of the method may be applied in one go at inference, their tensors stacked by row."""
    peft_type: str | None = None
    """Name in the peft library, if it has the method."""
    vllm: bool = False
    """Whether vLLM can serve the exported adapter."""
    vllm_refusal: str = "it takes LoRA alone"
    """Why not, in vLLM's terms."""
    seeded: bool = True
    """Whether a seed changes anything: initial values, training rows or examples that are drawn."""


class Method(Generic[ConfigT]):
    """Base of all methods. Build one with the config's fields: `LoRA(rank=8, where="self_attn.q self_attn.v")`."""

    name: ClassVar[str]
    aliases: ClassVar[tuple[str, ...]] = ()
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {}
    """Aliases that stand for certain settings: `rslora` is LoRA with `rank_stabilized`. Settings given beside them win."""
    branch: ClassVar[Branch]
    Config: ClassVar[type[Settings]] = MethodConfig
    kinds: ClassVar[tuple[SiteKind, ...]] = ()
    """Kinds of site it can edit."""
    capabilities: ClassVar[Capabilities] = Capabilities()
    search: ClassVar[Mapping[str, Space]] = {}
    """Hyperparameters that a search varies, with their ranges."""
    backbone_kinds: ClassVar[tuple[BackboneKind, ...]] = get_args(BackboneKind)
    """Kinds of backbone on which the method has a meaning; `check` says why it has none elsewhere."""
    reference: ClassVar[Reference | None] = None
    """Which of the standard comparisons the method is, if any; one method for each (`registry.reference`)."""
    small_lr: ClassVar[float | None] = None
    """Peak learning rate that backbones of a few million parameters need, as measured on the embedded ones (`--shrink` uses
    it); None leaves what the study says."""
    tiny: ClassVar[Mapping[str, Any]] = {}
    """Settings with which the conformance suite runs the method on models 32 wide, where its defaults are too large."""

    def __init_subclass__(cls, **arguments: Any) -> None:
        """Gives the class the signature of its settings, so that editors and notebooks complete `LoRA(ra`."""
        super().__init_subclass__(**arguments)
        config = inspect.Parameter("config", inspect.Parameter.POSITIONAL_ONLY, default=None)
        settings = inspect.signature(cls.Config).parameters.values()
        cls.__signature__ = inspect.Signature([config, *settings])  # type: ignore[attr-defined]

    def __init__(self, config: ConfigT | None = None, /, **settings: Any) -> None:
        if config is not None and settings:
            # Which of the two would win is nothing to remember.
            raise TypeError("give a config or settings, not both")
        self.config: ConfigT = config if config is not None else self.configure(settings)

    @property
    def prompting(self) -> Prompting | None:
        """How the method asks, where it changes the prompt alone; None for all others."""
        return None

    @classmethod
    def configure(cls, settings: Mapping[str, Any]) -> ConfigT:
        """A config from plain settings.

        Raises:
            UserError: an unknown or ill-typed setting, with the nearest valid name.
        """
        try:
            return cls.Config(**settings)  # type: ignore[return-value]
        except ValidationError as error:
            raise _explain(cls.name, cls.Config, error) from None

    @classmethod
    def defaults_for(cls, facts: Facts) -> dict[str, Any]:
        """Settings to begin with on a backbone of this width and so many rows, where they differ from the config's defaults; see
        `methods.rules`. Empty where no rule speaks of the method."""
        return {}

    def sites(self, anatomy: Anatomy) -> tuple[Site, ...]:
        """The sites that this method edits on a backbone; by default what `where`, `layers` and `stacks` select.

        Where `where` was left at its default and names nothing here (a state-space model has no queries and values), it is
        widened: to every linear, else to whole layers.
        """
        config = self.config
        assert isinstance(config, SiteMethodConfig), f"{type(self).__name__} must override sites()"
        try:
            return Selection(config.where, config.layers, config.stacks).sites(anatomy, self.kinds)
        except NothingSelected:
            # Only at its default: whoever wrote `where` is told that it names nothing here, and nothing else is tuned
            # in its place.
            if config.where == type(config).model_fields["where"].default:
                for wider in ("all_linear", "layer"):
                    try:
                        return Selection(wider, config.layers, config.stacks).sites(anatomy, self.kinds)
                    except NothingSelected:
                        continue
            raise

    def shared(self, sites: Sequence[Site], anatomy: Anatomy) -> nn.Module | None:
        """Tensors that several sites share (a reparameterization network, projections); None if there are none."""
        return None

    def edit(self, site: Site, shared: nn.Module | None, module: nn.Module) -> Edit:
        """The edit at one site. `module` is the backbone's module there, for initial values (PiSSA, BitFit, DoRA)."""
        raise TypeError(f"method {self.name!r} trains nothing and has no edits")

    def count(self, site: Site) -> int:
        """Trainable parameters at one site, by formula; the conformance suite holds it against the real tensors."""
        return 0

    def count_shared(self, sites: Sequence[Site], anatomy: Anatomy) -> int:
        """Trainable parameters that sites share, by formula."""
        return 0

    def resolve(self, processor: Any) -> Self:
        """This method with what its settings leave to the tokenizer or to files filled in (a text prompt becomes ids).

        Called once, before any edit is built; the result's config is what is stored, so that loading needs neither.

        Args:
            processor: the backbone's tokenizer or image processor, or None where there is none.
        """
        return self

    def check(self, anatomy: Anatomy) -> None:
        """Raises a UserError that says why, if the method has no meaning on this kind of backbone."""
        # First what the family refuses altogether. What stands behind the last states alone needs no gradient of the backbone's.
        inside = self.capabilities.trains and not set(self.kinds) <= {"head"}
        if inside and (why := anatomy.family.refusals.get("training")):
            raise UserError(
                f"{self.name}: {anatomy.family.model_types[0]} cannot be trained: {why}.",
                hint="What reads its last states works (head, linear_probe), and what trains nothing (zero_shot, few_shot).",
            )
        if anatomy.kind not in self.backbone_kinds:
            raise UserError(
                f"method {self.name!r} has no meaning on {anatomy.kind} backbones; it works on {', '.join(self.backbone_kinds)}."
            )

    @property
    def vllm_note(self) -> str:
        """What else vLLM needs to serve an adapter with these settings; empty where nothing."""
        return ""

    @property
    def added_tokens(self) -> int:
        """Virtual tokens and prefix places that it puts beside a row, which take positions as the row's own tokens do."""
        return 0

    def mistake(self, anatomy: Anatomy) -> str | None:
        """Why settings are a mistake on this backbone although they would run, or None. They are refused where somebody wrote
        them, and not offered by a search."""
        return self.config.mistake(self.sites(anatomy))

    # Exchange with the peft library: methods that it has override these.

    def to_peft(self, items: Sequence[tuple[Site, Any]], anatomy: Anatomy) -> PeftPart:
        """This method's share of a peft checkpoint, from its sites and their edits.

        Raises:
            UserError: peft has no such method, or not with these settings.
        """
        raise UserError(
            f"the peft library has no method for what {self.name!r} does, so its format cannot hold this adapter."
        )

    @classmethod
    def from_peft(cls, checkpoint: PeftCheckpoint) -> list[ImportedPart] | None:
        """Methods and tensors that do what a checkpoint of this method's `peft_type` does; None if it belongs to another
        method of that type.

        Raises:
            UserError: it has a setting that changes the function and that this method has not.
        """
        return None

    saved_whole: ClassVar[SiteKind | None] = None
    """Kind of site of which a peft checkpoint may hold whole modules (`modules_to_save`) that this method takes over."""

    @classmethod
    def from_saved(
        cls, checkpoint: PeftCheckpoint, values: Mapping[str, Mapping[str, torch.Tensor]]
    ) -> list[ImportedPart]:
        """Parts for modules that a checkpoint holds whole: module path -> parameter name -> value."""
        raise TypeError(f"{cls.__name__} sets saved_whole and must define from_saved()")

    # Training: methods with a schedule or a penalty of their own override these.

    def solve(self, part: nn.Module, rows: LabelledFeatures) -> None:
        """Fills the part's tensors from features of the training rows, in place of training by steps.

        Called once, for methods whose `capabilities.solved` is true. What should be recorded of it, `report` says.
        """
        raise TypeError(f"method {self.name!r} is not solved")

    def linear_head(self, rows: LabelledFeatures, intercept: bool) -> tuple[torch.Tensor, torch.Tensor]:
        """W (classes, width) and b (classes,) of a linear head solved on these features, as a start for one that is trained.

        Args:
            intercept: whether that head has a bias; without one b is zero.
        """
        raise TypeError(f"method {self.name!r} solves no linear head")

    def import_libraries(self) -> None:
        """Imports what `fit` needs. It is booked for all as loading: whoever comes first does not pay for the others."""

    def fit(self, rows: LabelledTexts) -> Answerer:
        """What answers in place of a backbone, of methods whose `capabilities.baseline` is true.

        Args:
            rows: training rows, at least one.
        """
        raise TypeError(f"method {self.name!r} is no baseline")

    def fit_bytes(self, rows: LabelledTexts) -> int:
        """Memory that `fit` and the libraries it imports take at most, roughly: where a budget limits memory, what does not fit
        is refused beforehand.

        Args:
            rows: training rows, at least one.
        """
        return 0

    def solve_operations(self, rows: int, width: int, classes: int) -> float:
        """Floating-point operations that `solve` takes, roughly: what a plan adds to the passes for the features.

        Args:
            width: numbers of one row's features.
        """
        return 0.0

    def solve_bytes(self, rows: int, width: int, classes: int) -> int:
        """Memory that `solve` takes at most, roughly: where a budget limits memory, what does not fit is refused beforehand.

        Args:
            width: numbers of one row's features.
        """
        return 3 * 8 * rows * width  # features in double precision, once as they are, once standardized, once in work

    def penalty(self, part: nn.Module, progress: float) -> torch.Tensor | None:
        """A term to add to the loss (AdaLoRA's orthogonality, DiffPruning's L0); `progress` runs from 0 to 1."""
        return None

    def after_backward(self, part: nn.Module, step: int, total_steps: int) -> None:
        """Called when gradients are ready, before the optimizer's step."""

    def after_step(self, part: nn.Module, step: int, total_steps: int) -> None:
        """Called after the optimizer's step, while the gradients are still there (AdaLoRA's importance and pruning)."""

    def settled(self, part: nn.Module) -> bool:
        """Whether what is trained now keeps what the method promises (AdaLoRA's ranks, DiffPruning's sparsity).

        Until then patience does not end the trial, and a later checkpoint is preferred to any from before.
        """
        return True

    def finish(self, part: nn.Module) -> None:
        """Called once when training ends and the best checkpoint is back (DiffPruning fixes its gates)."""

    def report(self, part: nn.Module) -> dict[str, float]:
        """What a record should say about a trained part besides its size (DiffPruning's sparsity, AdaLoRA's mean rank)."""
        return {}

    def parameter_groups(self, part: nn.Module) -> list[ParameterGroup]:
        """Optimizer groups; by default one, with the config's learning rate and weight decay (LoRA+ overrides)."""
        # The rate is a method's own: in a combination LoRA and a prompt differ by a factor of a hundred.
        if not isinstance(self.config, MethodConfig):  # nothing is stepped
            return []
        parameters = [p for p in part.parameters() if p.requires_grad]
        return [{"params": parameters, "lr": self.config.lr, "weight_decay": self.config.weight_decay}]

    def describe(self) -> dict[str, object]:
        """Name and settings, as they are stored with an adapter."""
        return {"method": self.name, **self.config.model_dump()}

    def __repr__(self) -> str:
        fields = type(self.config).model_fields
        changed = {
            # Labels of trials are made of this, so what is at its default is left out.
            k: v
            for k, v in self.config.model_dump().items()
            if v != fields[k].get_default(call_default_factory=True)
        }
        return f"{type(self).__name__}({', '.join(f'{k}={v!r}' for k, v in changed.items())})"


def prompting_of(methods: Sequence[Method[Any]]) -> Prompting | None:
    """How methods that stand together ask: as the first of them that changes the prompt; None where none does."""
    return next((method.prompting for method in methods if method.prompting is not None), None)


def _explain(method: str, config: type[BaseModel], error: ValidationError) -> UserError:
    """Turns a pydantic error into one sentence per problem, with the nearest setting."""
    lines = []
    fields = list(config.model_fields)
    for problem in error.errors():
        name = ".".join(str(part) for part in problem["loc"])
        if problem["type"] == "extra_forbidden":
            lines.append(
                f"method {method!r} has no setting {name!r}.{nearest(name, fields)} It has {', '.join(fields)}."
            )
        else:
            if problem["type"] == "value_error":
                lines.append(
                    f"method {method!r}, setting {name!r}: {problem['ctx']['error']}, got {problem['input']!r}."
                )
            else:
                lines.append(should_be(f"method {method!r}, setting {name!r}", [problem["msg"]], problem["input"]))
    return UserError("\n".join(lines), hint=f"dollartune methods show {method}")
