"""P-tuning: virtual tokens that a small trained network computes from trained vectors.

E (n, d) ──> encoder (MLP, or LSTM and MLP) ──> P (n, d) ──> [ P | embedded input ] ──> layers
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from dollartune.methods.base import Capabilities, Method
from dollartune.methods.edits import Rows, VirtualTokens
from dollartune.methods.prompt import (
    SoftPrompt,
    VirtualTokensConfig,
    placed_after_first,
    prompt_part,
    prompt_parts,
    prompt_sites,
)
from dollartune.methods.space import Choice, LogUniform

if TYPE_CHECKING:
    from dollartune.backbones.anatomy import Anatomy, Site
    from dollartune.methods.exchange import ImportedPart, PeftCheckpoint, PeftPart


class PTuningConfig(VirtualTokensConfig):
    """Virtual tokens from a trained encoder."""

    lr: float = 3e-3
    encoder: Literal["mlp", "lstm"] = "mlp"
    """Three linear layers with ReLU; or a bidirectional LSTM and two."""
    hidden: int | None = Field(None, ge=1)
    """Hidden size h of the encoder; None is d_model."""
    lstm_layers: int = Field(2, ge=1)
    """Layers of the LSTM."""


class EncodedPrompt(VirtualTokens):
    """encoder(E), E (n, d)."""

    def __init__(self, length: int, d_model: int, hidden: int, lstm_layers: int | None) -> None:
        super().__init__()
        self.length = length
        # of deviation 1, as the embedding that peft has here
        self.inputs = nn.Parameter(torch.randn(length, d_model))  # E (n, d)
        if lstm_layers is None:
            self.lstm = None
            widths = [d_model, hidden, hidden, d_model]
        else:
            self.lstm = nn.LSTM(d_model, hidden, lstm_layers, bidirectional=True, batch_first=True)
            widths = [2 * hidden, 2 * hidden, d_model]  # both directions side by side
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(widths))

    def tokens(self, rows: Rows) -> Tensor:
        h: Tensor = self.inputs
        if self.lstm is not None:
            h = self.lstm(h[None])[0][0]  # (1, n, d) -> (1, n, 2 h) -> (n, 2 h)
        *inner, last = self.layers
        for layer in inner:
            h = torch.relu(layer(h))
        result: Tensor = last(h)
        return result

    @torch.no_grad()
    def frozen(self) -> SoftPrompt:
        prompt = SoftPrompt(self.tokens(Rows()))
        prompt.key, prompt.after_first = self.key, self.after_first
        return prompt


class PTuning(Method[PTuningConfig]):
    """P = encoder(E), put before the embedded input. MLP: W₃ relu(W₂ relu(W₁ E)); LSTM: W₂ relu(W₁ BiLSTM(E)).

    Trainable: MLP, n d + (d h + h) + (h² + h) + (h d + d); LSTM, n d + the LSTM's Σ_layers 2·4h(in + h + 2), in = d in
    the first and 2h in later layers, + (4h² + 2h) + (2h d + d). After training only P is needed, which is what an
    export holds. So does peft: an adapter that comes from its files goes on as prompt tuning. Not the identity at its
    start.

    Source: Liu et al. 2021, "GPT Understands, Too". The encoders are those of the peft library (no dropout in the
    LSTM), which puts all tokens before the input, as here, where the paper scatters them over its template.
    """

    name = "p_tuning"
    aliases = ("ptuning", "p_tuning_v1", "prompt_encoder")
    branch = "addition"
    Config = PTuningConfig
    kinds = ("input",)
    capabilities = Capabilities(identity=False, peft_type="P_TUNING")
    small_lr = 0.003
    tiny: ClassVar[Mapping[str, Any]] = {"tokens": 3, "hidden": 16}
    search: ClassVar[Mapping[str, Any]] = {"lr": LogUniform(1e-4, 3e-2), "tokens": Choice(8, 20, 48)}

    @property
    def added_tokens(self) -> int:
        return self.config.tokens

    def sites(self, anatomy: Anatomy) -> tuple[Site, ...]:
        return prompt_sites(anatomy, self.config.stacks)

    def edit(self, site: Site, shared: nn.Module | None, module: nn.Module) -> EncodedPrompt:
        config = self.config
        layers = config.lstm_layers if config.encoder == "lstm" else None
        prompt = EncodedPrompt(config.tokens, site.out_features, config.hidden or site.out_features, layers)
        prompt.after_first = placed_after_first(config.placement)
        return prompt

    def count(self, site: Site) -> int:
        n, d, h = self.config.tokens, site.out_features, self.config.hidden or site.out_features
        if self.config.encoder == "mlp":
            return n * d + (d * h + h) + (h * h + h) + (h * d + d)
        lstm = sum(2 * 4 * h * ((d if layer == 0 else 2 * h) + h + 2) for layer in range(self.config.lstm_layers))
        return n * d + lstm + (4 * h * h + 2 * h) + (2 * h * d + d)

    def to_peft(self, items: Sequence[tuple[Site, Any]], anatomy: Anatomy) -> PeftPart:
        """P_TUNING: what the encoder computed, which is all that peft stores as well."""
        config = self.config
        settings = {
            "encoder_hidden_size": config.hidden or items[0][0].out_features,
            "encoder_reparameterization_type": config.encoder.upper(),
            "encoder_dropout": 0.0,  # peft builds the encoder before it reads the virtual tokens that stand for it
            "encoder_num_layers": 2,
        }
        return prompt_part("P_TUNING", items, anatomy, settings)

    @classmethod
    def from_peft(cls, checkpoint: PeftCheckpoint) -> list[ImportedPart] | None:
        """As prompt tuning: peft does not store the encoder."""
        checkpoint.notes.append(
            "peft stores no encoder for P-tuning; the virtual tokens were imported as prompt tuning."
        )
        return prompt_parts(checkpoint)
