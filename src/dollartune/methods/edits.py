"""What a method puts at a site. Each edit is a small module: its tensors and the function that applies them.

    x --> [ module ] --> y          Delta:       y + delta(x)
                                    Transform:   transform(x, y)
                                    InputEdit:   module(edit_input(x))
    embeddings -> layers            VirtualTokens: rows put before the embeddings
    keys, values                    KeyValuePrefix: rows put before keys and values
    parameters of a module          Override:    other values for them
    pooled last states              Readout:     scores of classes, in the place of the head

Edits are written so that a leading row dimension on their tensors just works: a matrix is (r, in) or (rows, r, in), a
vector is (1, d) or (rows, 1, d), and only `@`, `.mT` and broadcasting are used. That is what lets many adapters of one
method share a batch at inference: their tensors are stacked, gathered by row, and the same function runs once.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Rows:
    """What an edit may know about the rows it is applied to."""

    training: bool = False
    seed: int = 0
    """Changes with every step and trial; dropout masks are derived from it, so they can be replayed in the backward pass."""
    prompt_mask: dict[str, Tensor] = field(default_factory=dict)
    """Stack -> (rows, tokens) bool, true at the prompt's tokens; absent while single tokens are generated."""
    start: int | Tensor = 0
    """Place of the first real token, where virtual tokens of this or another adapter stand before it; a tensor where only the
    device knows, which is not asked unless an edit draws."""


_ONLY_TRAINING = {"key", "training", "dropout", "batched"}
"""Attributes of an edit that dropout alone reads, or that say in what shape its tensors are just now."""


class Edit(nn.Module):
    """Base of all edits."""

    key: int = 0
    """A number unique to the site within its adapter (set when attached), so that no two sites share a dropout mask."""

    batched: bool = False
    """Whether the tensors have a leading row dimension just now (stacked adapters at inference)."""
    zero_padded: ClassVar[bool] = False
    """Whether zeros appended to every tensor change nothing, so that adapters of several ranks can be stacked."""
    scalars: ClassVar[tuple[str, ...]] = ()
    """Plain numbers that may differ among stacked adapters; where they do, they become (rows, 1, 1) tensors."""
    bookkeeping: ClassVar[tuple[str, ...]] = ()
    """Tensors that only training reads."""
    each_token: ClassVar[bool] = True
    """Whether what is done to a token depends on no other token of its row, nor on its place. False where it does: the
    last layer then computes every token, though only some are read."""

    def constants(self) -> dict[str, int | float | str]:
        """Numbers and words by which the edit and those inside it compute beside their tensors, by name: two edits of one class
        with equal tensors and constants are the same function at inference."""
        return {
            f"{prefix}.{name}".lstrip("."): value
            for prefix, module in self.named_modules()
            for name, value in vars(module).items()
            if isinstance(value, int | float | str) and name not in _ONLY_TRAINING and not name.startswith("_")
        }

    def frozen(self) -> Edit:
        """An edit that does the same at inference without a network of its own (P-tuning's tokens, computed once)."""
        return self

    def affine(self) -> tuple[Tensor | None, Tensor | None] | None:
        """(scale, shift), each (1, features), or (rows, 1, features) where stacked, if at inference the edit is no more
        than y · scale + shift; None otherwise. A server then does those of all adapters in one go."""
        return None

    def fit(self, tensors: dict[str, Tensor]) -> None:
        """Takes the shapes of saved tensors before they are copied in (a pruned AdaLoRA has fewer rows than a new one).

        A parameter whose shape fits must stay the same object: states are loaded in the middle of training (the best one, an
        average, a checkpoint), and the optimizer holds the parameters that it was given.
        """


class Delta(Edit):
    """y <- y + delta(x) at a linear site. Recomputed in the backward pass from x alone, so it saves no activations."""

    def delta(self, x: Tensor, rows: Rows) -> Tensor:
        """What is added to the output. x (rows, tokens, in) -> (rows, tokens, out), in x's dtype."""
        raise TypeError(f"{type(self).__name__} must define delta()")

    def gradients(self, x: Tensor, gradient: Tensor, rows: Rows, of_x: bool) -> tuple[Tensor | None, list[Tensor]]:
        """What autograd would find for `delta`, by a formula. Optional: without it `delta` runs again under autograd.

        Args:
            x: (rows, tokens, in).
            gradient: of the delta, (rows, tokens, out), in x's dtype.
            of_x: whether that of x is wanted.

        Returns:
            The gradient of x, and those of all `parameters()`, in order.
        """
        raise TypeError(f"{type(self).__name__} has no formula for its gradients")

    def merge(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """The weight (out, in) and bias (out,) that have the edit inside, for methods that are `mergeable`."""
        raise TypeError(f"{type(self).__name__} cannot be merged")


class Transform(Edit):
    """y <- transform(x, y) at a linear, a sublayer, a layer or a norm."""

    def transform(self, x: Tensor, y: Tensor, rows: Rows) -> Tensor:
        """x (rows, tokens, in), y (rows, tokens, out) -> the new y."""
        raise TypeError(f"{type(self).__name__} must define transform()")

    def merge(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """As `Delta.merge`."""
        raise TypeError(f"{type(self).__name__} cannot be merged")


class InputEdit(Edit):
    """x <- edit_input(x) before the module runs."""

    def edit_input(self, x: Tensor, rows: Rows) -> Tensor:
        """x (rows, tokens, in) -> the new x."""
        raise TypeError(f"{type(self).__name__} must define edit_input()")

    def merge(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """As `Delta.merge`."""
        raise TypeError(f"{type(self).__name__} cannot be merged")


class VirtualTokens(Edit):
    """Rows put before (or after the first of) the embedded tokens of one stack."""

    length: int
    after_first: bool | None = None
    """Put them after the first token, so that a classifier that reads the first position still reads [CLS]; None does so
    where backbones read it there (encoders and vision transformers)."""

    def tokens(self, rows: Rows) -> Tensor:
        """(length, d_model), or (rows, length, d_model) where tensors are stacked by row."""
        raise TypeError(f"{type(self).__name__} must define tokens()")


class Gate(nn.Module):
    """σ(x w + c) per token, w (1, in), c (1, 1): how much of a part's effect a token lets through."""

    def __init__(self, in_features: int, start: float) -> None:
        super().__init__()
        self.w = zeros(1, in_features)  # (1, in)
        self.c = nn.Parameter(torch.full((1, 1), math.log(start / (1 - start))))  # σ(c) = start, while w is zero

    def forward(self, x: Tensor) -> Tensor:
        """x (rows, tokens, in) -> (rows, tokens, 1) in (0, 1)."""
        return torch.sigmoid(x @ self.w.to(x.dtype).mT + self.c.to(x.dtype))

    def log(self, x: Tensor) -> Tensor:
        """The same, as a logarithm."""
        return nn.functional.logsigmoid(x @ self.w.to(x.dtype).mT + self.c.to(x.dtype))


class KeyValuePrefix(Edit):
    """Keys and values put before those of an attention; every query sees them."""

    length: int
    as_text: bool = False
    """Whether its places have the distances of text before the tokens, where attention knows distances (T5)."""

    def __init__(self) -> None:
        super().__init__()
        self.gate: Gate | None = None
        """Scales each query's attention to the prefix, from what enters the attention."""

    def prefix(self, rows: Rows) -> tuple[Tensor, Tensor]:
        """(k, v), each (heads, length, head_size), or (rows, heads, length, head_size)."""
        raise TypeError(f"{type(self).__name__} must define prefix()")


class Readout(Edit):
    """Scores of classes from the backbone's pooled last states, in the place of its head; the layers stay as they are.

    The batch is its own: what the head would compute is left out, and with it the decoder of an encoder-decoder.
    """

    pooling: tuple[str, ...]
    """Parts of the features, as `features.pools` gives them."""
    unmergeable: str | None = None
    """Why its scores cannot be the backbone's own head's; None where they can: `head` then says with which weights."""
    most_tokens: int | None = None
    """Only so many tokens of a row, the first ones, go through the backbone; None: all."""
    rows_share: float = 1.0
    """Share of the training rows that it is solved on."""
    counts_tokens: bool = False
    """Whether `scores` reads the rows' tokens beside their features."""

    def scores(self, features: Tensor, tokens: Sequence[Sequence[int]] | None = None) -> Tensor:
        """(rows, classes), whose softmax are probabilities.

        Args:
            features: (rows, width), fp32.
            tokens: ids of each row, without padding; None where they are not known.
        """
        raise TypeError(f"{type(self).__name__} must define scores()")

    def head(self) -> tuple[Tensor, Tensor]:
        """W (classes, width) and b (classes,) of a linear head that gives the same scores."""
        raise TypeError(f"{type(self).__name__} is no linear head")

    def linear(self) -> dict[str, Tensor] | None:
        """The same scores as matrices for others to compute with; None where they are not linear in what a row is.

        `weight` (classes, width) and `bias` (classes,) of the features; where tokens are counted, too, `keys` and `idf`
        (n-grams,) as `token_counts.NGrams` has them, and `words` (classes, n-grams).
        """
        return None


class Override(Edit):
    """Other values for some parameters of the module at the site (and of the modules inside it)."""

    def values(self) -> dict[str, Tensor]:
        """Parameter name inside the site's module -> its value; differentiable in this edit's own tensors."""
        raise TypeError(f"{type(self).__name__} must define values()")

    def trained(self, name: str) -> nn.Parameter | None:
        """The tensor that is trained in the place of a parameter of the site's module; None if there is none of its shape."""
        return None


def dropout(x: Tensor, probability: float, rows: Rows, key: int) -> Tensor:
    """Dropout whose mask depends on (rows.seed, key) alone; the identity when not training.

    torch's own dropout draws from the global generator, which neither a recomputation nor a trial that shares its batch
    with others could replay.
    """
    if not rows.training or probability == 0.0:
        return x
    # A prime apart, so that (seed, key) pairs do not meet; below 2^62, as the mask of virtual tokens takes a second
    # half of the generator's 64 bits.
    seed = (rows.seed * 1_000_003 + key) % (2**62)

    def draw(tokens: int, seed: int) -> Tensor:
        """(tokens, rows, ...) numbers in [0, 1), token by token."""
        # Token by token: drawn row by row, a row's mask would depend on how long its neighbours are.
        generator = seeded_generator(x.device, seed)
        shape = (tokens, x.shape[0], *x.shape[2:]) if x.dim() > 2 else x.shape
        return torch.empty(shape, device=x.device, dtype=torch.float32).uniform_(generator=generator)

    if x.dim() < 3:
        kept = draw(0, seed) >= probability
    else:  # forwards from the first real token and backwards from it: on a CPU, the mask of a token does not depend on
        start = min(int(rows.start), x.shape[1])  # padding, nor on the virtual tokens of other trials in the batch
        drawn = draw(x.shape[1] - start, seed)
        drawn = torch.cat([draw(start, seed + 2**62).flip(0), drawn]) if start else drawn
        kept = drawn.transpose(0, 1) >= probability
    # Scaled in training and not at inference, so that the mean stays and merging needs no factor.
    return x * kept.to(x.dtype) / (1.0 - probability)


def seeded_generator(device: torch.device, seed: int) -> torch.Generator:
    """A device's generator; for the meta device, which draws nothing but is planned with, the processor's."""
    return torch.Generator(device="cpu" if device.type == "meta" else device).manual_seed(seed)


def kaiming_uniform(*shape: int) -> nn.Parameter:
    """A matrix initialized as `nn.Linear` and peft's LoRA A are: uniform in +-1/sqrt(fan_in)."""
    parameter = nn.Parameter(torch.empty(*shape))
    # a = √5 gives a gain of 1/√3, which makes the bound 1/√fan_in: torch's own way to write that.
    nn.init.kaiming_uniform_(parameter, a=math.sqrt(5))
    return parameter


def zeros(*shape: int) -> nn.Parameter:
    """A trainable tensor of zeros, the usual way to begin as the identity."""
    return nn.Parameter(torch.zeros(*shape))
