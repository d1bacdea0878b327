"""What a piece of work would compute and keep in memory, found by running it on tensors without contents.

    with Tracer() as tracer:
        trainer.train_step(...)            the real code, on the meta device
    tracer.peak()                    bytes alive at the worst moment, by what they are
    tracer.work()                    every kernel: what it multiplies, what it reads and writes
    tracer.compiled_bytes()          what a library keeps beside tensors, by how many unlike products there were

Nothing is estimated from formulas of an architecture: whatever the training code does (a fused loss, recomputed
activations, another optimizer) is what is counted. Small integer inputs (ids, masks, lengths) stay real, so that code
which looks at them takes the same way as in earnest.
"""

from __future__ import annotations

import weakref
from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map_only
from torch.utils.flop_counter import flop_registry

from dollartune.planner.meta_kernel_cache import Result, case, result

_aten = torch.ops.aten
_SCALARS = (_aten._local_scalar_dense.default, _aten.item.default, _aten.is_nonzero.default)
_ATTENTION = _aten._scaled_dot_product_flash_attention_for_cpu
_DIRECT = "mkldnn::_linear_pointwise"
"""Products that go to oneDNN past torch's choice of a library (`attach.cpu_linear`)."""
_MATRIX = frozenset({"mm", "addmm", "bmm", "baddbmm", "convolution", "convolution_backward"})
_ATTENTIONS = frozenset(
    {"_scaled_dot_product_flash_attention_for_cpu", "_scaled_dot_product_flash_attention_for_cpu_backward"}
)
COMPILED_BYTES = 580_000
"""What oneDNN keeps of each product whose shapes, strides or number format it meets for the first time: `python
bench/compiled_kernels.py` reads 0.57 to 0.63 MB in fp32 and in bf16, whatever the sizes."""
_SLOW = frozenset({
    "gelu", "gelu_backward", "tanh", "tanh_backward", "silu", "silu_backward", "sigmoid", "exp", "log", "pow", "erf",
    "softplus", "_softmax", "_log_softmax", "_softmax_backward_data", "_log_softmax_backward_data", "uniform_",
    "bernoulli_", "normal_", "log_sigmoid_forward",
})  # fmt: skip
"""Elementwise kernels that spend more on arithmetic than on memory."""


@dataclass(frozen=True)
class Kernel:
    """One kind of kernel call."""

    kind: str
    """`matrix`, `direct` (matrix products straight to oneDNN), `attention`, `slow` (transcendental functions, random numbers),
    `plain` (other elementwise), `view`."""
    dtype: str
    """Of the arithmetic, for example `bfloat16`."""
    flops: int
    moved_bytes: int
    """Read and written."""


@dataclass(frozen=True)
class Work:
    """Kernel calls and how often each occurs."""

    calls: Mapping[Kernel, int] = field(default_factory=dict)

    def __add__(self, other: Work) -> Work:
        return Work(dict(Counter(self.calls) + Counter(other.calls)))

    def __sub__(self, other: Work) -> Work:
        return Work(dict(Counter(self.calls) - Counter(other.calls)))

    @property
    def flops(self) -> int:
        return sum(kernel.flops * count for kernel, count in self.calls.items())

    @property
    def moved_bytes(self) -> int:
        return sum(kernel.moved_bytes * count for kernel, count in self.calls.items())

    @property
    def launches(self) -> int:
        """Kernel calls that do something (views do not)."""
        return sum(count for kernel, count in self.calls.items() if kernel.kind != "view")


_VIEW = Kernel("view", "", 0, 0)
_KNOWN: dict[Any, tuple[Kernel, Result | None]] = {}
"""Cases of kernels -> what is counted, and what to return where that is a new tensor."""


class _FusedAttention(TorchFunctionMode):
    """Attention as the fused kernels do it (the result and one number per query), not as the meta device would."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is torch.nn.functional.scaled_dot_product_attention:
            mask = kwargs.get("attn_mask", args[3] if len(args) > 3 else None)
            # The fused kernel keeps one number per query for the backward pass; unfused the whole (queries, keys)
            # matrix would be counted.
            if mask is None or not mask.requires_grad:  # else there is no fused kernel on a processor
                return _fused_attention(*args, **kwargs)
        return func(*args, **kwargs)


def _fused_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """query (rows, heads, queries, size), key and value (rows, heads or fewer, keys, size)."""
    if enable_gqa and key.shape[-3] != query.shape[-3]:
        # Grouped queries: torch's kernel for processors repeats keys and values, so the copies are counted.
        times = query.shape[-3] // key.shape[-3]
        key, value = key.repeat_interleave(times, -3), value.repeat_interleave(times, -3)
    if attn_mask is not None:
        kept = attn_mask.to("meta")
        attn_mask = torch.zeros_like(kept, dtype=query.dtype) if kept.dtype == torch.bool else kept
    attended: Tensor = _ATTENTION(query, key, value, 0.0, is_causal, attn_mask=attn_mask, scale=scale)[0]
    return attended


class Tracer(TorchDispatchMode):
    """Counts kernels and follows every storage from its creation to its release.

    Args:
        known: category -> tensors that exist before (weights, what an optimizer holds).
        label: category of a new tensor; None for `activations`.
    """

    def __init__(
        self, known: Mapping[str, Iterable[Tensor]] | None = None, label: Callable[[Tensor], str | None] | None = None
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch's modes have no types
        self._label = label or (lambda tensor: None)
        self._events: list[tuple[int, int]] = []
        """(number of a storage, bytes), bytes negative at its release, in order."""
        self._category: dict[int, str] = {}
        self._numbers: dict[int, tuple[int, Any]] = {}
        """id of a living storage -> its number, and a reference that notices its end."""
        self._calls: Counter[Kernel] = Counter()
        self._compiled: set[Hashable | None] = set()
        """Cases of products that oneDNN has a kernel for."""
        self._functions, self._depth = _FusedAttention(), 0
        for category, tensors in (known or {}).items():
            for tensor in tensors:
                self._follow(tensor, category)

    def __enter__(self) -> Tracer:
        if not self._depth:
            self._functions.__enter__()  # type: ignore[no-untyped-call]
        self._depth += 1
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)  # type: ignore[no-untyped-call]
        self._depth -= 1
        if not self._depth:
            self._functions.__exit__(*error)  # type: ignore[no-untyped-call]

    def mark(self, category: str, tensors: Iterable[Tensor]) -> None:
        """Says afterwards what tensors are, for example which of them are gradients."""
        for tensor in tensors:
            known = self._numbers.get(id(tensor.untyped_storage()))
            if known is not None:
                self._category[known[0]] = category

    def peak(self) -> dict[str, int]:
        """Bytes by category at the moment when most are alive."""
        alive = highest = at = 0
        for index, (_, size) in enumerate(self._events):
            alive += size
            # Of equal peaks the last one: by then more categories have been marked.
            if alive >= highest:
                highest, at = alive, index
        by_category: dict[str, int] = defaultdict(int)
        # Replayed up to that moment: categories may be said after a tensor was made (`mark`).
        for number, size in self._events[: at + 1]:
            by_category[self._category[number]] += size
        return {name: size for name, size in by_category.items() if size}

    def work(self) -> Work:
        """Everything that was computed since the start or the last `forget`."""
        return Work(dict(self._calls))

    def forget(self) -> None:
        """Counts kernels anew."""
        self._calls.clear()

    def compiled_bytes(self) -> int:
        """What oneDNN has compiled for the products called so far, and keeps for their next call."""
        return COMPILED_BYTES * len(self._compiled)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        now = case(func, args, kwargs)
        if now in _KNOWN:
            kernel, made = _KNOWN[now]
            self._calls[kernel] += 1
            self._compile(kernel, now)
            out, tensors = made.make(args) if made is not None else _called(func, args, kwargs)
            for tensor in tensors:
                self._follow(tensor, None)
            return out
        # Code that asks for a number (a gradient's norm, "is any finite") gets one that lets it go on: nothing is known
        # of the values.
        if func in _SCALARS and args[0].is_meta:
            return True if args[0].dtype == torch.bool else 1.0 if args[0].is_floating_point() else 1
        if func._can_decompose():  # in inference mode, kernels made of others come whole
            with self:
                decomposed = func.decompose(*args, **kwargs)
            if decomposed is not NotImplemented:
                return decomposed
        if func is _aten._to_copy.default and args[0].is_meta and not _is_meta(kwargs.get("device") or "meta"):
            return torch.zeros(args[0].shape, dtype=kwargs.get("dtype") or args[0].dtype)
        if _is_meta(kwargs.get("device")):
            real = _real_integers(func, args, kwargs)
            if real is not None:
                return real
        tensors = [leaf for leaf in tree_flatten((args, kwargs))[0] if isinstance(leaf, Tensor)]
        mixed = any(t.is_meta for t in tensors) and any(not t.is_meta for t in tensors)
        if mixed:
            # A kernel has one device. Real ones here are small integers, whose values nothing after this asks for.
            args, kwargs = tree_map_only(Tensor, lambda t: t.to("meta"), (args, kwargs))
        out, outputs = _called(func, args, kwargs)
        if outputs:
            before = {id(t.untyped_storage()) for t in tensors}
            kernel = _kernel(func, args, tensors, outputs, out, before)
            self._calls[kernel] += 1
            self._compile(kernel, now)
            made = result(func, args, out, before)
            # What changes a tensor in place is called again each time, and with mixed devices that would fail.
            if now is not None and (made is not None or not mixed):
                _KNOWN[now] = kernel, made
            for tensor in outputs:
                self._follow(tensor, None)
        return out

    def _compile(self, kernel: Kernel, now: Hashable | None) -> None:
        # In fp32 torch sends products that are not `direct` to MKL, which keeps nothing by shape.
        if kernel.kind == "direct" or (kernel.kind == "matrix" and kernel.dtype == "bfloat16"):
            self._compiled.add(now)

    def _follow(self, tensor: Tensor, category: str | None) -> None:
        storage = tensor.untyped_storage()
        key = id(storage)
        if key in self._numbers:
            return
        # By storage: views share one, and only the last of them frees it.
        number, size = len(self._category), int(storage.nbytes())
        self._category[number] = category or self._label(tensor) or "activations"
        self._events.append((number, size))

        def released(reference: Any) -> None:
            self._numbers.pop(key, None)
            self._events.append((number, -size))

        self._numbers[key] = number, weakref.ref(storage, released)


def _called(func: Any, args: Any, kwargs: Any) -> tuple[Any, list[Tensor]]:
    """What a kernel returns, and the tensors without contents in it."""
    out = func(*args, **kwargs)
    leaves = [out] if isinstance(out, Tensor) else tree_flatten(out)[0]
    return out, [leaf for leaf in leaves if isinstance(leaf, Tensor) and leaf.is_meta]


def _kernel(func: Any, args: Any, inputs: list[Tensor], outputs: list[Tensor], out: Any, before: set[int]) -> Kernel:
    """What a kernel call computes and moves; `before` are the ids of its inputs' storages."""
    name = func._schema.name.removeprefix("aten::")
    writes = func._schema.is_mutable
    new = [t for t in outputs if id(t.untyped_storage()) not in before]
    if not new and not writes:
        return _VIEW
    # The output's first: a product of bf16 into fp32 is as fast as what it accumulates in.
    dtype = str(next((t.dtype for t in (*outputs, *inputs) if t.is_floating_point()), outputs[0].dtype))
    # Every operand once: what a cache saves within a kernel is in the fitted bandwidth.
    moved = sum(_size(t) for t in (*inputs, *outputs))
    flops = 0
    formula = flop_registry.get(func._overloadpacket)
    if name in _MATRIX and formula is not None:
        flops = int(formula(*args, out_val=out))
    elif name in _ATTENTIONS:
        flops = _attention_flops(args, name.endswith("backward"))
    kind = "matrix" if name in _MATRIX else "attention" if name in _ATTENTIONS else "slow" if name in _SLOW else "plain"
    if name == _DIRECT:
        kind, flops = "direct", 2 * args[0].numel() * args[1].shape[0]
    if kind == "slow":
        # One each: their cost is in elements per second (`Speed.slow_per_second`).
        flops = sum(t.numel() for t in outputs)
    # Memory that is asked for and not touched.
    if name.startswith("empty") or name in ("new_empty", "new_empty_strided"):
        moved = 0
    return Kernel(kind, dtype.removeprefix("torch."), flops, moved)


def _is_meta(device: Any) -> bool:
    return device is not None and torch.device(device).type == "meta"


def _real_integers(func: Any, args: Any, kwargs: Any) -> Any:
    """Integers that were asked for on the meta device stay real; None for anything else."""
    if args and isinstance(args[0], Tensor):
        source = args[0]
        dtype = kwargs.get("dtype") or source.dtype
        if source.is_meta or dtype.is_floating_point or dtype.is_complex:
            return None
        return func(*args, **{**kwargs, "device": torch.device("cpu")})
    dtype = kwargs.get("dtype")
    whole = func._overloadpacket is _aten.arange and all(isinstance(a, int) for a in args)
    if (dtype is None and whole) or (dtype is not None and not dtype.is_floating_point and not dtype.is_complex):
        return func(*args, **{**kwargs, "device": torch.device("cpu")})
    return None


def _size(tensor: Tensor) -> int:
    """Bytes that a kernel touches: an expanded tensor is read once."""
    return min(tensor.numel() * tensor.element_size(), int(tensor.untyped_storage().nbytes()))


def _attention_flops(args: Any, backward: bool) -> int:
    """Two products of queries and keys over the head's width; five in the backward pass, which forms scores again."""
    query, key = (args[1], args[2]) if backward else (args[0], args[1])
    pairs = query.numel() // query.shape[-1] * key.shape[-2]  # rows · heads · queries · keys
    # 2 operations (multiply, add) for each product: Q Kᵀ and P V, backward P again and four gradients.
    return int((10 if backward else 4) * pairs * query.shape[-1])
