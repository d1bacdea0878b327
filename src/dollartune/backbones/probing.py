"""Passes of a miniature: who is called when, what flows into keys and values, what looks ahead, what can be put in.

    linears of a layer ──y──> [ rotations, norms, splits ] ──> q, k, v ──> attention
            └──────── d(q, k, v) / dy ≠ 0 ────────┘     which outputs of which linear become queries, keys, values:
                                                        whatever a family's code does between, gradients tell it

Nothing here reads a name; `structure.py` makes a role map of what is seen.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from dollartune.backbones.anatomy import weight_shape
from dollartune.backbones.forward_inputs import takes
from dollartune.backbones.miniature import ANSWER_TOKENS, TOKENS, sample_inputs
from dollartune.backbones.module_outputs import states_of, with_states

_PROBE = "dollartune_probe"


@dataclass(eq=False)
class Call:
    """One call of a module."""

    name: str
    x: Tensor | None
    """Its first tensor."""
    y: Any = None
    tensors: int = 1
    """How many it was given by position or as hidden states: a norm with a gate has two."""
    linear: bool = False
    """Whether it gave y = W x + b and nothing else. Routers are linears by their class: Llama 4's gives what its experts are
    chosen by, PhiMoE's gives it beside y."""

    @property
    def output(self) -> Tensor | None:
        """Its first output."""
        y = states_of(self.y)
        y = next(iter(y.values()), None) if isinstance(y, dict) else y
        return y if isinstance(y, Tensor) else None


@dataclass(eq=False)
class Meeting:
    """One attention: queries, keys and values as they meet, or the scores where its code is the family's own."""

    module: str
    """The module in whose call it happened (for an attention interface: the one that was handed over)."""
    interface: bool
    """Whether transformers' attention interface was asked."""
    query: Tensor | None = None
    key: Tensor | None = None
    value: Tensor | None = None
    scores: Tensor | None = None


@dataclass
class Trace:
    """One pass, in the order in which things began."""

    events: list[Call | Meeting] = field(default_factory=list)
    output: Any = None

    def calls(self) -> list[Call]:
        """Calls of modules alone."""
        return [event for event in self.events if isinstance(event, Call)]


def trace(model: nn.Module, inputs: dict[str, Tensor]) -> Trace:
    """Runs a miniature with gradients and watches every module and every attention."""
    seen = Trace()
    stack: list[str] = []
    handles = []
    for name, module in model.named_modules():
        handles.append(module.register_forward_pre_hook(_entering(seen, stack, name), with_kwargs=True))
        # always_call: also after an error, or the stack of modules would be wrong from there on.
        handles.append(module.register_forward_hook(_leaving(seen, stack), with_kwargs=True, always_call=True))
    # Everything is asked of gradients; the miniature is thrown away.
    model.requires_grad_(True)
    names = {module: name for name, module in model.named_modules()}
    try:
        with _watched_interface(model, seen, names), _OwnAttention(seen, stack), torch.enable_grad():
            seen.output = model(**inputs)
    finally:
        for handle in handles:
            handle.remove()
    return seen


def _entering(seen: Trace, stack: list[str], name: str) -> Callable[..., None]:
    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, object]) -> None:
        # By position first, then by the names that transformers' modules use for it.
        given = [*args, *(kwargs[k] for k in ("hidden_states", "inputs_embeds", "input", "x") if k in kwargs)]
        tensors = [value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)]
        call = Call(name, next((value for value in given if isinstance(value, Tensor)), None), tensors=len(tensors))
        seen.events.append(call)
        stack.append(name)
        module.__dict__.setdefault("_dollartune_calls", []).append(call)

    return hook


def _leaving(seen: Trace, stack: list[str]) -> Callable[..., None]:
    def hook(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        stack.pop()
        call: Call = module.__dict__["_dollartune_calls"].pop()
        call.y = output
        call.linear = _is_linear(module, call)  # now: what follows may write into the output
        if not module.__dict__["_dollartune_calls"]:
            del module.__dict__["_dollartune_calls"]

    return hook


@torch.no_grad()
def _is_linear(module: nn.Module, call: Call) -> bool:
    shape = weight_shape(module)
    beside = call.y[1:] if isinstance(call.y, tuple) else ()
    if shape is None or call.x is None or call.output is None or any(one is not None for one in beside):
        return False
    weight = module.get_parameter("weight")
    plain = call.x @ (weight if shape[2] else weight.T)
    bias = getattr(module, "bias", None)
    plain = plain if bias is None else plain + bias
    # Loose, as sums may be made in another order; a product with another matrix, or one transposed, is off in its first digit.
    return plain.shape == call.output.shape and torch.allclose(plain, call.output, rtol=1e-3, atol=1e-3)


@contextmanager
def _watched_interface(model: Any, seen: Trace, names: dict[nn.Module, str]) -> Any:
    """Within the block, attention that goes through transformers' interface is seen."""
    from transformers import AttentionInterface
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, AttentionMaskInterface
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    def attention(
        module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any = None, **settings: Any
    ) -> Any:
        seen.events.append(Meeting(names.get(module, ""), True, query, key, value))
        base = now.get(names.get(module, ""), "sdpa")
        function: Any = ALL_ATTENTION_FUNCTIONS["sdpa"]
        if base == "eager":
            import sys

            function = getattr(sys.modules[type(module).__module__], "eager_attention_forward", function)
        return function(module, query, key, value, attention_mask, **settings)

    before = str(getattr(model.config, "_attn_implementation", "eager"))
    now = dict.fromkeys(names.values(), before)
    changed = before in ("sdpa", "eager")
    if changed:
        AttentionInterface.register(_PROBE, attention)
        AttentionMaskInterface.register(_PROBE, ALL_MASK_ATTENTION_FUNCTIONS[before])
        try:
            model.set_attn_implementation(_PROBE)
        except Exception:  # a family that knows its implementations by name
            changed = False
    try:
        yield
    finally:
        if changed:
            model.set_attn_implementation(before)


class _OwnAttention(TorchFunctionMode):
    """Sees softmax over tokens, and scaled dot products, in code of a family's own."""

    def __init__(self, seen: Trace, stack: list[str]) -> None:
        super().__init__()
        self.seen, self.stack = seen, stack
        self._probabilities: Tensor | None = None

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = getattr(function, "__name__", "")
        last = self.seen.events[-1] if self.seen.events else None
        # The interface's own functions call softmax or sdpa too, and one attention must not be seen twice.
        told = isinstance(last, Meeting) and last.interface  # what follows is inside the interface's own function
        if name == "scaled_dot_product_attention" and not told:
            query, key, value = (*args, *(kwargs[k] for k in ("query", "key", "value") if k in kwargs))[:3]
            self._add(Meeting(self._here(), False, query, key, value))
        result = function(*args, **kwargs)
        if name == "softmax" and not told and isinstance(args[0] if args else None, Tensor) and _over_tokens(args[0]):
            self._add(Meeting(self._here(), False, scores=args[0]))
            self._probabilities = result
        elif name in ("matmul", "bmm", "baddbmm", "einsum", "__matmul__") and self._probabilities is not None:
            operands = [value for value in _flat(args) if isinstance(value, Tensor)]
            shape = self._probabilities.shape
            if operands and operands[0].shape[-2:] == shape[-2:] and operands[0].numel() == self._probabilities.numel():
                meeting = next(e for e in reversed(self.seen.events) if isinstance(e, Meeting))
                meeting.value, self._probabilities = operands[-1], None
        return result

    def _add(self, meeting: Meeting) -> None:
        self.seen.events.append(meeting)

    def _here(self) -> str:
        return self.stack[-1] if self.stack else ""


def _flat(values: Any) -> list[Any]:
    return [item for value in values for item in (_flat(value) if isinstance(value, tuple | list) else [value])]


def _over_tokens(scores: Tensor) -> bool:
    """Whether its last two sizes are numbers of tokens: an attention's, not a router's or a vocabulary's."""
    sizes = (TOKENS, ANSWER_TOKENS)
    return scores.dim() >= 3 and scores.shape[-1] in sizes and scores.shape[-2] in sizes


def sources(target: Tensor, outputs: Sequence[Tensor]) -> list[Tensor | None]:
    """For each output (rows, tokens, features) of a linear: (features,) bool, which of them the target depends on; None
    where none does."""
    if not outputs or not target.requires_grad:
        return [None] * len(outputs)
    # Random weights: a plain sum can cancel (rotations, normalized vectors) and hide a dependence. Seeded, so that a
    # family reads the same each time.
    weights = torch.randn(target.shape, generator=torch.Generator().manual_seed(1)).to(target)
    gradients = torch.autograd.grad((target * weights).sum(), list(outputs), retain_graph=True, allow_unused=True)
    masks = [None if g is None else g.abs().flatten(0, -2).amax(0) > 0 for g in gradients]  # (features,)
    return [mask if mask is not None and bool(mask.any()) else None for mask in masks]


def score_sources(
    scores: Tensor, outputs: Sequence[Tensor], tokens_first: bool = False
) -> tuple[list[Tensor | None], list[Tensor | None]]:
    """As `sources`, of the queries and of the keys behind scores (..., queries, keys): what the score of the last query
    with the first key depends on at the last token is a query, at the first token a key. Linears may get more tokens than an
    attention has queries (ProphetNet's futures stand behind them).

    Args:
        tokens_first: the outputs are (tokens, rows, features).
    """
    # The last query is causally allowed to see the first key, in decoders as in encoders.
    entry = scores[..., -1, 0]
    weights = torch.randn(entry.shape, generator=torch.Generator().manual_seed(1)).to(entry)
    wanted = [y for y in outputs if y.dim() >= 3]
    if not wanted or not entry.requires_grad:
        return [None] * len(outputs), [None] * len(outputs)
    gradients = torch.autograd.grad((entry * weights).sum(), wanted, retain_graph=True, allow_unused=True)
    by_output = dict(zip(map(id, wanted), gradients, strict=True))
    queries: list[Tensor | None] = []
    keys: list[Tensor | None] = []
    for y in outputs:
        gradient = by_output.get(id(y))
        gradient = gradient.transpose(0, 1) if gradient is not None and tokens_first else gradient
        last = scores.shape[-2] - 1 if gradient is not None and gradient.shape[1] % scores.shape[-2] == 0 else -1
        for end, masks in ((last, queries), (0, keys)):
            mask = None if gradient is None else gradient.flatten(2)[:, end].abs().amax(0) > 0
            masks.append(mask if mask is not None and bool(mask.any()) else None)
    return queries, keys


def multiplied(scores: Tensor, query: Tensor, key: Tensor) -> bool:
    """Whether a score multiplies what one linear gives with what another gives. What is added to scores beside their product (a
    bias by distance that depends on the query, as ProphetNet has it) does not."""
    entry = scores[..., -1, 0]
    try:
        (gradient,) = torch.autograd.grad(entry.sum(), query, create_graph=True)
        (mixed,) = torch.autograd.grad(gradient.square().sum(), key, retain_graph=True, allow_unused=True)
    except RuntimeError:  # a gradient that depends on nothing more, or code that has no second one
        return False
    return mixed is not None and bool(mixed.any())


class NothingSeen(Exception):
    """A pass in which no token moves what is given for another."""


@torch.no_grad()
def looks_ahead(model: nn.Module) -> bool:
    """Whether a later token moves what a text model gives for earlier ones: the one difference between an encoder and a
    decoder that no configuration has to tell."""
    inputs = sample_inputs(model, "decoder")
    ids = inputs["input_ids"]
    other = ids.clone()
    other[:, -1] = _another(ids, -1)
    first = ids.clone()
    first[:, 0] = _another(ids, 0)
    a, b, c = (_first_output(model(input_ids=given)) for given in (ids, other, first))
    least = 1e-4 * a.abs().max()  # rounding moves them by 1e-6 of their size, attention by far more
    looks = bool((a[:, :-1] - b[:, :-1]).abs().max() > least)
    if not looks and not bool((a[:, 1:] - c[:, 1:]).abs().max() > least):
        raise NothingSeen("no token sees another, so its attention must need a kernel that is not here")
    return looks


def _another(ids: Tensor, place: int) -> Tensor:
    """A token for each row at that place, half the range away and never the same one."""
    low, high = int(ids.min()), int(ids.max())
    return low + (ids[:, place] - low + 1 + (high - low) // 2) % (high - low + 1)


@torch.no_grad()
def masks_without_cache(model: Any, inputs: dict[str, Tensor]) -> bool | None:
    """Whether the decoder of an encoder-decoder hides later tokens from earlier ones only in passes that keep nothing; None where
    it never does."""
    ids = inputs["decoder_input_ids"]

    def leaks(**more: bool) -> bool:
        plain = _first_output(model(**inputs, **more))
        for start in (1, ids.shape[1] - 1):  # ProphetNet mixes up its tokens, so that the first place sees the next few
            others = ids.clone()
            for place in range(start, ids.shape[1]):
                others[:, place] = _another(ids, place)
            moved = _first_output(model(**{**inputs, "decoder_input_ids": others}, **more)) - plain
            if bool(moved[:, :start].abs().max() > 1e-4 * plain.abs().max()):
                return True
        return False

    if not takes(model, "use_cache"):
        return None if leaks() else False
    return None if leaks(use_cache=False) else leaks(use_cache=True)


def first_line(error: Exception) -> str:
    """What an error says, for a sentence of ours."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:120]


def _first_output(output: Any) -> Tensor:
    value = output[0]
    assert isinstance(value, Tensor)
    return value


@torch.no_grad()
def embeddings_suffice(model: Any, inputs: dict[str, Tensor], embedding: str, ids: str = "input_ids") -> str | None:
    """Why a text model cannot be given embeddings in the place of token ids, or None where it gives the same for both.

    Args:
        embedding: name of the module that embeds.
        ids: the input that is replaced, `input_ids` or `decoder_input_ids`.
    """
    given = dict(inputs)
    expected = _first_output(model(**given))
    embedded = states_of(model.get_submodule(embedding)(given.pop(ids)))
    try:
        result = _first_output(model(**given, **{ids.replace("input_ids", "inputs_embeds"): embedded}))
    except Exception as error:
        # what is asked of a None is the ids that are not there
        why = "its code reads the ids" if "NoneType" in str(error) else first_line(error)
        return f"it does not run on embeddings in the place of token ids ({why})"
    moved = float((result - expected).abs().max())
    # Rounding moves the last digits; what is read beside the embeddings moves the first ones.
    if result.shape != expected.shape or moved > 1e-4 * float(expected.abs().max()):
        return f"it reads token ids beside their embeddings: without them its results move by {moved:.2g}"
    try:  # Gemma 4 finds the ids by looking embeddings up in its table, where virtual tokens are not
        model(**given, **{ids.replace("input_ids", "inputs_embeds"): 0.5 * embedded + 0.01})
    except Exception:
        return "it reads token ids beside their embeddings: it takes embeddings that are in its own table alone"
    return None


@torch.no_grad()
def takes_more_places(model: nn.Module, inputs: dict[str, Tensor], entrance: str) -> str | None:
    """Why tokens cannot be put behind the embeddings of an image encoder, or None where its layers take any number."""

    def hook(module: nn.Module, args: Any, output: Any) -> Any:
        first = output[0] if isinstance(output, tuple) else output
        # Two more places, copies of real ones: windows and fixed tables of positions fail, plain attention does not.
        more = torch.cat([first, first[:, :2]], dim=1)
        return (more, *output[1:]) if isinstance(output, tuple) else more

    handle = model.get_submodule(entrance).register_forward_hook(hook)
    try:
        model(**inputs)
    except Exception as error:
        return f"its layers take the places of an image's patches alone ({first_line(error)})"
    finally:
        handle.remove()
    return None


def negated(model: nn.Module, inputs: dict[str, Tensor], name: str, features: slice | None, at: str) -> Tensor | None:
    """What enters the module `at` when the outputs (some `features` of them) of the module `name` have the other sign."""
    entered: list[Tensor] = []

    def flip(module: nn.Module, args: Any, output: Any) -> Any:
        sign = torch.ones(states_of(output).shape[-1])
        sign[features if features is not None else slice(None)] = -1
        return with_states(output, states_of(output) * sign)

    def keep(module: nn.Module, args: tuple[Tensor, ...]) -> None:
        entered.append(args[0].detach())

    handles = [
        model.get_submodule(name).register_forward_hook(flip),
        model.get_submodule(at).register_forward_pre_hook(keep),
    ]
    try:
        with torch.no_grad():
            model(**inputs)
    finally:
        for handle in handles:
            handle.remove()
    return entered[0] if entered else None


@torch.no_grad()
def changes_by_itself(model: Any, inputs: dict[str, Tensor], seen: Trace) -> float:
    """By what share of their size results differ in a second pass over the same inputs."""
    first = _first_output(seen.output)
    return float((_first_output(model(**inputs)) - first).abs().max() / first.abs().max().clamp_min(1e-6))


@torch.no_grad()
def padding_matters(model: Any, inputs: dict[str, Tensor]) -> float:
    """By what share of their size the results of a row of text, or its last states, move when padding stands behind it, as in
    a batch."""
    if getattr(model.config, "is_encoder_decoder", False) or "input_ids" not in inputs:
        return 0.0  # its classifiers look for the end mark, which a shorter row has not
    # Three places of padding: a convolution or a recurrence reaches over one.
    real = TOKENS - 3
    alone = {name: value[:1, :real] for name, value in inputs.items()}
    padded = {name: value[:1].clone() for name, value in inputs.items()}
    padded["attention_mask"][:, real:] = 0
    pad = getattr(model.config, "pad_token_id", None)
    padded["input_ids"][:, real:] = pad if isinstance(pad, int) else 0
    most = 0.0
    # The last states too, which solved methods read: a classifier may look at one place that padding does not reach.
    for module in dict.fromkeys([model, getattr(model, str(model.base_model_prefix), model)]):
        try:
            a, b = _first_output(module(**alone)), _first_output(module(**padded))
        except Exception:
            if module is model:
                raise
            continue  # a base model that is given more than text by what is around it
        b = b[:, : a.shape[1]] if a.dim() == 3 else b
        if a.shape == b.shape:
            # By the size of the results, which differs by orders of magnitude between families.
            most = max(most, float((a - b).abs().max() / a.abs().max().clamp_min(1e-6)))
    return most


@torch.no_grad()
def padding_before_matters(model: Any, inputs: dict[str, Tensor]) -> bool:
    """Whether what a decoder writes after a row of text moves when padding stands before the row, as it does in a batch."""
    real = TOKENS - 3
    ids = inputs["input_ids"][:1, :real]
    pad = getattr(model.config, "pad_token_id", None)
    before = torch.full((1, 3), pad if isinstance(pad, int) else 0)
    mask = (torch.arange(TOKENS) >= 3).long()[None]
    try:
        alone = _written(model, input_ids=ids, attention_mask=torch.ones_like(ids))
    except Exception:  # nothing to compare with
        return False
    try:
        padded = _written(model, input_ids=torch.cat([before, ids], dim=1), attention_mask=mask)
    except Exception:  # a family that takes rows from their first place on
        return True
    return bool((alone - padded).abs().max() > 1e-3 * alone.abs().max())  # rounding stays below 1e-5


@torch.no_grad()
def writes_from_embeddings(model: Any, inputs: dict[str, Tensor]) -> bool:
    """Whether `generate` takes embeddings in the place of a prompt's token ids."""
    try:
        _written(model, inputs_embeds=states_of(model.get_input_embeddings()(inputs["input_ids"])))
    except Exception as error:
        return "inputs_embeds" not in str(error)  # anything else fails with token ids as well
    return True


def _written(model: Any, **prompt: Tensor) -> Tensor:
    """Logits (3, vocabulary) of three tokens that a decoder writes after a prompt."""
    return torch.cat(list(_generated(model, **prompt).logits))


def _generated(model: Any, **prompt: Tensor) -> Any:
    """What `generate` gives for three greedy tokens, with their logits; no mark ends them."""
    from transformers import GenerationConfig

    model.generation_config = GenerationConfig(do_sample=False, num_beams=1)  # a miniature, which is thrown away
    return model.generate(**prompt, max_new_tokens=3, pad_token_id=0, return_dict_in_generate=True, output_logits=True)


@torch.no_grad()
def generates(model: Any, inputs: dict[str, Tensor]) -> bool:
    """Whether the logits by which `generate` chooses three tokens are those of passes over the whole text so far."""
    ids = inputs["input_ids"][:1]
    try:
        written = _generated(model, input_ids=ids, attention_mask=torch.ones_like(ids))
        chosen = torch.cat(list(written.logits))  # (3, vocabulary)
        whole = _first_output(model(input_ids=written.sequences[:, :-1]))[0, -len(chosen) :]
    except Exception:  # nothing can be kept, or the class has no `generate`
        return False
    return bool((chosen - whole).abs().max() <= 1e-3 * whole.abs().max())  # rounding stays below 1e-5


def trainable_through(model: Any, seen: Trace, inputs: dict[str, Tensor]) -> str | None:
    """Why no gradient flows back from a model's output, or None where it does."""
    outputs = [seen.output]
    if takes(model, "use_cache"):
        # As its configuration has it: some write over what they keep for the next token (RWKV).
        with torch.enable_grad(), suppress(Exception):  # some cannot keep anything (layers of linear attention alone)
            outputs.append(model(**inputs, use_cache=True))
    try:
        for output in outputs:
            # retain_graph: roles are read from the same pass afterwards.
            _first_output(output).float().sum().backward(retain_graph=True)
    except Exception as error:
        if "inplace operation" in str(error):
            return "its code writes over its own states, so no gradient flows back through it here"
        # Reformer computes its layers again on the way back, in training mode alone and on texts of one length
        return f"no gradient flows back through its code in evaluation mode, in which training runs here ({first_line(error)})"
    return None
