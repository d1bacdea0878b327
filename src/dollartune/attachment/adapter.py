"""An adapter: everything that one trial trains, as modules that know their sites but hold no reference to the backbone."""

from __future__ import annotations

import zlib
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from dollartune.attachment.fast.frozen_layers import untouched_layers
from dollartune.attachment.fsdp import fill, whole
from dollartune.backbones.device_map import refuse_put_away
from dollartune.errors import UserError
from dollartune.methods.edits import Edit, InputEdit, KeyValuePrefix, Override, Readout, VirtualTokens

if TYPE_CHECKING:
    from dollartune.backbones.anatomy import Anatomy, Site
    from dollartune.methods.base import Method


class AdapterPart(nn.Module):
    """What one method of an adapter trains: its edits by site, and what they share."""

    def __init__(self, method: Method[Any], anatomy: Anatomy, backbone: nn.Module) -> None:
        super().__init__()
        self.method = method
        method.check(anatomy)
        self.sites = method.sites(anatomy) if method.capabilities.trains else ()
        self.shared = method.shared(self.sites, anatomy) if self.sites else None
        self.edits = nn.ModuleDict()
        for site in self.sites:
            module = backbone if site.entry == "" else backbone.get_submodule(site.exit)
            edit = method.edit(site, self.shared, module)
            if _is_exclusive(site, edit) or site.kind == "weights":
                refuse_put_away(module, f"method {method.name!r} ({site.name})")
            # dropout draws from (seed, step, key): a checksum is the same in every process, Python's hash() is not
            edit.key = zlib.crc32(f"{method.name}/{site.name}".encode())
            # ModuleDict takes no dots in its keys
            self.edits[site.name.replace(".", "/")] = edit

    def items(self) -> Iterator[tuple[Site, Edit]]:
        """Each site with its edit, in forward order."""
        for site in self.sites:
            yield site, self.edits[site.name.replace(".", "/")]  # type: ignore[misc]


class Adapter(nn.Module):
    """The parts of one trial's methods, in the order in which they act on the same rows."""

    def __init__(
        self,
        methods: Sequence[Method[Any]],
        anatomy: Anatomy,
        backbone: nn.Module,
        seed: int = 0,
        processor: Any = None,
    ) -> None:
        super().__init__()
        self.seed = seed
        self.backbone_kind = anatomy.kind
        # (labels,), in label order: added to the scores of label words wherever they are computed; a head has its bias instead
        self.label_offsets: Tensor | None
        self.register_buffer("label_offsets", None)
        methods = [method.resolve(processor) for method in methods]
        self.parts = nn.ModuleList()
        # on the CPU whatever the device: initial values must not depend on which one is at hand
        with torch.random.fork_rng(devices=[]):
            # Seeded here and nowhere else: initial values never depend on what ran before. The processor's generator alone:
            # `torch.manual_seed` would also set a GPU's, which nothing sets back.
            torch.default_generator.manual_seed(seed)
            for method in methods:
                self.parts.append(AdapterPart(method, anatomy, backbone))
        self.reindex()

    def reindex(self) -> None:
        """Builds the look-ups by module that the hooks use."""
        self.inputs: dict[str, list[tuple[Site, InputEdit]]] = defaultdict(list)
        self.outputs: dict[str, list[tuple[Site, Edit]]] = defaultdict(list)
        self.captures: set[str] = set()
        self.virtual: dict[str, list[VirtualTokens]] = defaultdict(list)
        self.prefixes: dict[str, list[tuple[Site, KeyValuePrefix]]] = defaultdict(list)
        self.exclusive: list[tuple[Site, Override]] = []
        self.weights: dict[str, list[tuple[Site, Override]]] = defaultdict(list)
        self.readout: Readout | None = None
        for site, edit in self.items():
            if isinstance(edit, Readout):
                self.readout = edit
            elif isinstance(edit, VirtualTokens):
                self.virtual[site.stack].append(edit)
            elif isinstance(edit, KeyValuePrefix):
                self.prefixes[site.exit].append((site, edit))
                if edit.gate is not None:
                    self.captures.add(site.entry)
            elif isinstance(edit, InputEdit):
                self.inputs[site.entry].append((site, edit))
            elif site.kind == "weights":
                self.weights[site.exit].append((site, edit))  # type: ignore[arg-type]
            elif _is_exclusive(site, edit):
                self.exclusive.append((site, edit))  # type: ignore[arg-type]
            else:
                self.outputs[site.exit].append((site, edit))
                if site.kind == "sublayer":
                    self.captures.add(site.entry)
        self._untouched: dict[str, int] | None = None
        for edits in self.outputs.values():  # other values for a module come first; what is added to its output, after
            edits.sort(key=lambda item: not isinstance(item[1], Override))

    @property
    def methods(self) -> tuple[Method[Any], ...]:
        return tuple(part.method for part in self.parts)  # type: ignore[misc]

    def items(self) -> Iterator[tuple[Site, Edit]]:
        """Every (site, edit) of every part."""
        for part in self.parts:
            yield from part.items()  # type: ignore[operator]

    @property
    def mixed_rows(self) -> bool:
        """Whether rows of other adapters may share a batch with this one's."""
        return all(method.capabilities.mixed_rows for method in self.methods)

    def untouched(self, anatomy: Anatomy) -> dict[str, int]:
        """Stack -> leading layers that this adapter leaves as they are (its frozen prefix)."""
        # kept, as every pass asks for it; `reindex` forgets it
        if self._untouched is None:
            self._untouched = untouched_layers((site for site, _ in self.items()), anatomy)
        return self._untouched

    def virtual_tokens(self) -> int:
        """Places that it puts among a row's tokens, at most, in any stack."""
        return max((sum(edit.length for edit in edits) for edits in self.virtual.values()), default=0)

    def trainable(self) -> dict[str, nn.Parameter]:
        """Trainable tensors by name; tensors shared between sites appear once."""
        return {name: p for name, p in self.named_parameters() if p.requires_grad}

    def count(self) -> int:
        """Number of trainable parameters."""
        return sum(p.numel() for p in self.trainable().values())

    def reported(self) -> dict[str, dict[str, float]]:
        """Method -> what it says of its trained part besides the size; methods with nothing to say are left out."""
        said = {}
        for part in self.parts:
            assert isinstance(part, AdapterPart)
            if figures := part.method.report(part):
                said[part.method.name] = figures
        return said

    def modules_edited(self) -> dict[str, int]:
        """Site name -> trainable parameters there (shared tensors under `shared`): a count is always given with its list."""
        counts: dict[str, int] = defaultdict(int)
        for part in self.parts:
            common: list[nn.Parameter] = list(part.shared.parameters()) if part.shared is not None else []  # type: ignore[union-attr]
            shared = {id(p) for p in common}
            if common:
                counts["shared"] += sum(p.numel() for p in common if p.requires_grad)
            for site, edit in part.items():  # type: ignore[operator]
                counts[site.name] += sum(
                    p.numel() for p in edit.parameters() if p.requires_grad and id(p) not in shared
                )
        return {name: count for name, count in counts.items() if count}

    def tensors(self) -> dict[str, Tensor]:
        """What is saved: every parameter and persistent buffer, once, on the CPU and contiguous."""
        saved: dict[str, Tensor] = {}
        seen: set[int] = set()
        # keep_vars: else each is detached into a new object, and tied ones are not known again
        for name, tensor in self.state_dict(keep_vars=True).items():
            # tied tensors are saved once; safetensors refuses shared memory
            if id(tensor) not in seen:
                seen.add(id(tensor))
                saved[name] = whole(tensor.detach()).to("cpu").contiguous()
        return saved

    def shift_labels(self, offsets: Sequence[float]) -> None:
        """Adds offsets to the scores of label words, (labels,); they are stored with the adapter."""
        added = torch.tensor(offsets, dtype=torch.float32)
        self.label_offsets = added if self.label_offsets is None else self.label_offsets + added.to(self.label_offsets)

    @torch.no_grad()
    def load(self, tensors: dict[str, Tensor]) -> None:
        """Puts saved tensors back.

        Raises:
            UserError: names or shapes do not fit, or a value is not finite.
        """
        for prefix, module in self.named_modules():
            if isinstance(module, Edit):
                start = f"{prefix}."
                # shapes that training decided (pruned ranks) are known from the file alone
                module.fit({name.removeprefix(start): t for name, t in tensors.items() if name.startswith(start)})
        if (offsets := tensors.get("label_offsets")) is not None and self.label_offsets is None:
            self.label_offsets = torch.zeros_like(offsets)
        tensors_here = self.state_dict(keep_vars=True)
        expected = self.tensors().keys()
        if missing := sorted(expected - tensors.keys()):
            raise UserError(f"the adapter file lacks {missing[:3]}{' and more' if len(missing) > 3 else ''}.")
        if unknown := sorted(tensors.keys() - expected):
            raise UserError(f"the adapter file has tensors that its config does not describe: {unknown[:3]}.")
        for name, tensor in tensors.items():
            if tensors_here[name].shape != tensor.shape:
                raise UserError(
                    f"tensor {name!r} has shape {tuple(tensor.shape)}, expected {tuple(tensors_here[name].shape)}."
                )
            # copy_ would cast without a word: whole numbers or truth values in place of weights
            if tensor.is_floating_point() != tensors_here[name].is_floating_point() or (
                (tensor.dtype == torch.bool) != (tensors_here[name].dtype == torch.bool)
            ):
                raise UserError(f"tensor {name!r} is stored as {tensor.dtype}, expected {tensors_here[name].dtype}.")
            if tensor.is_floating_point() and not torch.isfinite(tensor).all():
                raise UserError(f"tensor {name!r} holds values that are not finite.")
            fill(tensors_here[name], tensor)


def _is_exclusive(site: Site, edit: Edit) -> bool:
    """Whether values of it take the place of the backbone's own for a whole pass, which no other rows can share."""
    return isinstance(edit, Override) and site.kind in ("model", "layer", "embedding")
