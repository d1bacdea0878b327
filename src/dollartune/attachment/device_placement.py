"""Adapters on backbones whose modules compute on several devices: each edit lies where the module computes that it edits."""

from __future__ import annotations

import copy
from collections import defaultdict
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from dollartune.backbones.device_map import execution_device, home_device, is_placed
from dollartune.methods.edits import InputEdit, Override

if TYPE_CHECKING:
    from dollartune.attachment.adapter import Adapter, AdapterPart
    from dollartune.backbones.anatomy import Site


def move_to_backbone(adapter: Adapter, model: nn.Module) -> Adapter:
    """Moves an adapter to its backbone, in place.

    Where the backbone has a device map, each edit goes to its module; values for a module's own parameters (`Override`)
    are made there. Tensors that edits on several devices share (VeRA's projections) are copied to each, so such an adapter
    is for inference.
    """
    if not is_placed(model):
        return adapter.to(home_device(model))
    for part in adapter.parts:
        _move_part(part, model)  # type: ignore[arg-type]
    adapter.reindex()
    return adapter


def _move_part(part: AdapterPart, model: nn.Module) -> None:
    by_device: dict[torch.device, list[Site]] = defaultdict(list)
    for site, edit in part.items():
        if not isinstance(edit, Override):
            name = site.entry if isinstance(edit, InputEdit) else site.exit
            by_device[execution_device(model.get_submodule(name))].append(site)
    # all on one device: shared tensors stay shared, and the adapter can be trained
    if len(by_device) == 1:
        (device,) = by_device
        part.to(device)
        return
    for device, sites in by_device.items():
        memo: dict[int, Any] = {id(module): module for module in model.modules()}  # edits know their module; it stays
        if part.shared is not None:
            # for the memo: the edits that are copied below refer to this one copy
            copy.deepcopy(part.shared, memo).to(device)
        for site in sites:
            name = site.name.replace(".", "/")
            part.edits[name] = copy.deepcopy(part.edits[name], memo).to(device)


def moving_hook(device: torch.device) -> Any:
    """Pre-hook that moves what our other hooks of a module read to where it computes; accelerate does so only later."""

    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if args:
            return (args[0].to(device), *args[1:]), kwargs
        return args, {**kwargs, "hidden_states": kwargs["hidden_states"].to(device)}

    return hook
