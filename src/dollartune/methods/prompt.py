"""Prompt tuning: trained vectors before the embedded input; nothing else is added.

[ P_1 P_2 ... P_n | E(x_1) E(x_2) ... ] ──> layers        vision, encoders: [ CLS | P_1 ... P_n | x_1 x_2 ... ]
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

import torch
from pydantic import Field
from torch import Tensor, nn

from dollartune.backbones.device_map import tensor_of
from dollartune.errors import UserError
from dollartune.methods.base import Capabilities, Method, MethodConfig
from dollartune.methods.edits import Rows, VirtualTokens
from dollartune.methods.exchange import ImportedPart, PeftCheckpoint, PeftPart
from dollartune.methods.space import Choice, LogUniform

if TYPE_CHECKING:
    from dollartune.backbones.anatomy import Anatomy, Site


class VirtualTokensConfig(MethodConfig):
    """Settings of methods that put virtual tokens before the input."""

    tokens: int = Field(20, ge=1)
    """Number n of virtual tokens."""
    placement: Literal["auto", "before", "after_first"] = "auto"
    """Where they go: before the input; after its first token ([CLS]); or, as `auto`, after it where the backbone is an
    encoder or a vision transformer, whose classifier reads the first position, and before the input elsewhere. (In
    vision transformers `after_first` is carried out as behind all patches, which is the same: their attention has no
    order.)"""
    stacks: str = "first"
    """`first` (the encoder, or the only stack), encoder, decoder, all."""


class PromptConfig(VirtualTokensConfig):
    """Virtual tokens before the input."""

    lr: float = 0.1
    """Peak learning rate; prompt tuning needs 0.03 to 0.3, where LoRA needs 5e-4."""
    init: Literal["vocabulary", "random", "text"] = "vocabulary"
    """Start from embeddings of random tokens of the vocabulary, from noise, or from the embeddings of `text`."""
    text: str = ""
    """The initial text (init: text), for example a description of the task."""
    text_ids: list[int] = Field(default_factory=list)
    """Its token ids; filled in from `text`. They are repeated or cut to `tokens`."""


class SoftPrompt(VirtualTokens):
    """(n, d_model) trained embeddings."""

    def __init__(self, start: Tensor) -> None:
        super().__init__()
        self.length = start.shape[0]
        self.embeddings = nn.Parameter(start)

    def tokens(self, rows: Rows) -> Tensor:
        return self.embeddings


def prompt_sites(anatomy: Anatomy, stacks: str) -> tuple[Site, ...]:
    """The stack entrances that a `stacks` setting names.

    Raises:
        UserError: it names none that this backbone has.
    """
    sites = anatomy.at("input")
    if not sites:
        why = anatomy.family.refusals.get("input", "where tokens enter it is not known")
        raise UserError(f"virtual tokens cannot be put into {anatomy.family.model_types[0]}: {why}.")
    if stacks == "first":
        return sites[:1]
    wanted = stacks.replace(",", " ").split()
    chosen = tuple(site for site in sites if stacks == "all" or site.stack in wanted)
    if not chosen or not {"all", *(site.stack for site in sites)}.issuperset(wanted):
        raise UserError(
            f"stacks: {stacks!r} is not understood here; write first, all, or of {[site.stack for site in sites]}."
        )
    return chosen


def placed_after_first(placement: str) -> bool | None:
    """`VirtualTokens.after_first` of a `placement` setting."""
    return None if placement == "auto" else placement == "after_first"


class PromptTuning(Method[PromptConfig]):
    """n trained vectors P (n, d_model) are put before the embedded input: [P; E(x)].

    Trainable: n · d_model per stack (the width of the token embeddings, where that differs). Not the identity at its
    start. The default start, embeddings of random vocabulary tokens, is the one the paper found good on small models.

    Source: Lester et al. 2021, "The Power of Scale for Parameter-Efficient Prompt Tuning". In a vision transformer,
    after [CLS]: Jia et al. 2022 (VPT-shallow).
    """

    name = "prompt"
    aliases = ("prompt_tuning", "soft_prompt", "visual_prompt")
    branch = "addition"
    Config = PromptConfig
    kinds = ("input",)
    capabilities = Capabilities(identity=False, peft_type="PROMPT_TUNING")
    small_lr = 0.3
    tiny: ClassVar[Mapping[str, Any]] = {"tokens": 3}
    search: ClassVar[Mapping[str, Any]] = {"lr": LogUniform(0.01, 0.5), "tokens": Choice(8, 20, 48)}

    @property
    def added_tokens(self) -> int:
        return self.config.tokens

    def sites(self, anatomy: Anatomy) -> tuple[Site, ...]:
        return prompt_sites(anatomy, self.config.stacks)

    def resolve(self, processor: Any) -> Self:
        config = self.config
        if config.init != "text" or config.text_ids:
            return self
        if not config.text:
            raise UserError("prompt: init 'text' needs the text.", hint="prompt(init='text', text='Answer yes or no.')")
        if not hasattr(processor, "convert_ids_to_tokens"):
            raise UserError(
                f"prompt: it takes a tokenizer to turn text {config.text!r} into tokens, and this backbone has none."
            )
        ids = processor(config.text, add_special_tokens=False)["input_ids"]
        return type(self)(config.model_copy(update={"text_ids": [int(i) for i in ids]}))

    def edit(self, site: Site, shared: nn.Module | None, module: nn.Module) -> SoftPrompt:
        prompt = SoftPrompt(self._start(site, module))
        prompt.after_first = placed_after_first(self.config.placement)
        return prompt

    def _start(self, site: Site, module: nn.Module) -> Tensor:
        """Initial (n, d_model); noise where there is no vocabulary (vision)."""
        count = self.config.tokens
        weight = tensor_of(module, "weight")
        if weight is None or weight.dim() != 2:  # images have no vocabulary
            # The standard deviation with which ViT draws its position embeddings, which these stand beside.
            return torch.randn(count, site.out_features) * 0.02
        if self.config.init == "random":
            # Lester et al. draw uniformly from ±0.5, about the size of T5's embeddings; here normal numbers of that deviation.
            return torch.randn(count, site.out_features) * 0.5
        if self.config.init == "text":
            ids = torch.tensor([self.config.text_ids[i % len(self.config.text_ids)] for i in range(count)])
        else:
            # from torch's generator, seeded for the trial when adapters are made
            ids = torch.randint(0, weight.shape[0], (count,))
        # A clone, or training would move the backbone's own embeddings; fp32, as everything that is trained.
        start: Tensor = weight.detach()[ids.to(weight.device)].float().clone()
        return start

    def count(self, site: Site) -> int:
        return self.config.tokens * site.out_features

    def to_peft(self, items: Sequence[tuple[Site, Any]], anatomy: Anatomy) -> PeftPart:
        return prompt_part("PROMPT_TUNING", items, anatomy, {"prompt_tuning_init": "RANDOM"})

    @classmethod
    def from_peft(cls, checkpoint: PeftCheckpoint) -> list[ImportedPart] | None:
        return prompt_parts(checkpoint)


def prompt_part(
    peft_type: str, items: Sequence[tuple[Site, Any]], anatomy: Anatomy, settings: dict[str, object]
) -> PeftPart:
    """The computed virtual tokens (n, d_model) of one stack, as prompt tuning and P-tuning have them.

    Raises:
        UserError: peft puts its tokens elsewhere.
    """
    from dollartune.methods.edits import Rows as Context

    site, edit = items[0]
    if len(items) > 1 or (anatomy.kind == "encoder_decoder" and site.stack != "encoder"):
        raise UserError("peft's virtual tokens go into the encoder alone; it has none for a decoder beside one.")
    behind = (
        anatomy.kind in ("encoder", "vision")
        if edit.after_first is None
        else edit.after_first and anatomy.kind != "decoder"
    )
    if anatomy.kind == "vision":
        raise UserError("peft has no virtual tokens for vision transformers.")
    if behind:
        raise UserError(
            "peft puts virtual tokens before [CLS], this adapter has them after it; no export can change that.",
            hint="Train with prompt(placement='before') to exchange, or serve it here.",
        )
    with torch.no_grad():
        tokens = edit.tokens(Context()).detach()
    config = {
        **settings,
        "num_virtual_tokens": tokens.shape[0],
        "token_dim": tokens.shape[1],
        "num_transformer_submodules": 1,
    }
    return PeftPart(peft_type, config, {"prompt_embeddings": tokens}, ())


def prompt_parts(checkpoint: PeftCheckpoint) -> list[ImportedPart]:
    """Prompt tuning from stored virtual tokens; the second half of an encoder-decoder's is never read there."""
    tokens = checkpoint.alone("prompt_embeddings")
    count = int(checkpoint.config["num_virtual_tokens"])
    # Of an encoder-decoder peft stores twice as many, and reads the first half.
    if tokens.shape[0] not in (count, 2 * count):
        raise UserError(f"the peft adapter has {tokens.shape[0]} virtual tokens, its config says {count}.")
    site = checkpoint.anatomy.at("input")[0]
    # peft puts its tokens before everything, [CLS] included.
    # Random, as any start will do: the stored tokens are loaded over it.
    settings = {"tokens": count, "placement": "before", "init": "random"}
    return [ImportedPart("prompt", settings, {site.name: {"embeddings": tokens[:count]}})]
