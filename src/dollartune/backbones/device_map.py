"""Backbones that are larger than one GPU, for inference: weights over several GPUs, in the host's memory and on disk.

    device_map:  model.embed_tokens -> 0 ┐  before a module's forward, a hook of accelerate moves its inputs to the device
                 model.layers.0     -> 0 │  where it computes; weights that were put away (cpu beside a GPU, disk) are
                 model.layers.1  -> disk ┘  fetched for the pass and are empty (on the meta device) at all other times

accelerate does this work. Here: which maps are refused, where a module computes, and how a weight is read that was put
away. Nothing here costs anything where a backbone has no map.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal

import torch
import yaml
from torch import Tensor, nn

from dollartune.backbones.swapped_forward import swapped_forward
from dollartune.errors import UserError, nearest, need_package, unknown_name

NamedMap = Literal["auto", "balanced", "balanced_low_0", "sequential"]
"""`auto` and `balanced` fill GPUs evenly, `balanced_low_0` leaves room on the first, `sequential` fills one after another;
what finds no room goes to the host's memory, then to disk."""
DeviceMap = NamedMap | Mapping[str, int | str]
"""A name, or module -> number of a GPU, a device such as cuda:1, `cpu` or `disk`; "" stands for all other modules."""
NAMED_MAPS = ("auto", "balanced", "balanced_low_0", "sequential")


def parse_device_map(text: str | None) -> DeviceMap | None:
    """A map as it is written on a command line: a name, or a mapping in YAML's or JSON's short form.

    Examples:
        >>> parse_device_map("{model.layers.3: disk, '': cpu}")
        {'model.layers.3': 'disk', '': 'cpu'}

    Raises:
        UserError: neither.
    """
    if text is None or text in NAMED_MAPS:
        return text  # type: ignore[return-value]
    if text.lstrip().startswith("{"):
        try:
            parsed = yaml.safe_load(text)
        except yaml.YAMLError:
            parsed = None
        if isinstance(parsed, dict) and all(isinstance(value, int | str) for value in parsed.values()):
            return {str(name): value for name, value in parsed.items()}
        raise UserError(f"device map {text!r} is no mapping of modules to devices.", hint=_EXAMPLE)
    raise unknown_name("device map", text, NAMED_MAPS, _EXAMPLE)


_EXAMPLE = "A mapping is written as {model.layers.3: disk, '': 0}; '' stands for all other modules."


def checked_device_map(device_map: DeviceMap, model: nn.Module) -> NamedMap | dict[str, int | str]:
    """The map as accelerate takes it, in which no module is inside another one; a map that cannot work is refused.

    Args:
        model: the backbone, without weights.

    Raises:
        UserError: accelerate is missing; an unknown name, module or device; a weight that no module of it holds.
    """
    need_package("accelerate", "device_map")
    if isinstance(device_map, str):
        if device_map not in NAMED_MAPS:
            raise unknown_name("device map", device_map, NAMED_MAPS, _EXAMPLE)
        return device_map
    # The root is among them under "", which stands for all others.
    modules = {name for name, _ in model.named_modules()}
    for name, device in device_map.items():
        if name not in modules:
            close = nearest(name, modules)
            raise UserError(f"device_map: the backbone has no module {name!r}.{close}", hint=_modules_of(model))
        _check_device(name, device)
    apart = dict(_apart("", model, device_map, None))
    devices_of: dict[int, dict[str, int | str]] = {}
    # Tied weights have several names, and the map may speak of either.
    for name, parameter in model.named_parameters(remove_duplicate=False):
        devices = devices_of.setdefault(id(parameter), {})
        if (target := _device_of(name, apart)) is not None:
            devices[name] = target
    for name, parameter in model.named_parameters():
        devices = devices_of[id(parameter)]
        if not devices:
            raise UserError(
                f"device_map says nothing about {name!r}.", hint="Add an entry '' for all modules that are not named."
            )
        # accelerate would write two files of one tensor and tie neither.
        if "disk" in devices.values() and len(set(devices.values())) > 1:
            raise UserError(f"device_map: {' and '.join(devices)} are one tensor; put both on disk, or neither.")
    return apart


def _apart(
    name: str, module: nn.Module, device_map: Mapping[str, int | str], device: int | str | None
) -> Iterator[tuple[str, int | str]]:
    """(module, device) for a module, or for those in it where some of them have entries of their own."""
    here = device_map.get(name, device)
    start = f"{name}." if name else ""
    if not any(other.startswith(start) and other != name for other in device_map):
        if here is not None:
            yield name, here
        return
    # Tensors of a module that is taken apart belong to none of its children.
    for tensor_name, _ in (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)):
        if here is not None:
            yield start + tensor_name, here
    for child, inside in module.named_children():
        yield from _apart(start + child, inside, device_map, here)


def _modules_of(model: nn.Module) -> str:
    children = [f"{name}.{inner}" for name, child in model.named_children() for inner, _ in child.named_children()] + [
        name for name, child in model.named_children() if not any(True for _ in child.children())
    ]
    return f"Its modules: {', '.join(children)}."


def _device_of(parameter: str, apart: Mapping[str, int | str]) -> int | str | None:
    return next((d for name, d in apart.items() if name in ("", parameter) or parameter.startswith(f"{name}.")), None)


def _check_device(name: str, device: int | str) -> None:
    given = "''" if name == "" else name
    if device in ("cpu", "disk"):
        return
    try:
        wanted = torch.device("cuda", device) if isinstance(device, int) else torch.device(device)
    except (RuntimeError, ValueError):
        raise UserError(
            f"device_map: {given} cannot be put on {device!r}; expected the number of a GPU, cuda:1, cpu or disk."
            f"{nearest(str(device), ('cpu', 'disk', 'cuda'))}"
        ) from None
    # Asked before any weight is read: accelerate would fail at the first copy, minutes later.
    count = torch.cuda.device_count()
    if wanted.type == "cuda" and (wanted.index or 0) >= count:
        raise UserError(f"device_map: {given} cannot be put on GPU {wanted.index or 0}; this machine has {count} GPUs.")


def refuse_new_on_disk(model: Any, new: Iterable[str]) -> None:
    """Refuses to have weights on disk that are not in the checkpoint (a classifier's head), as nothing could be fetched.

    Raises:
        UserError: the map, perhaps by its name alone, puts one there.
    """
    for name in new:
        if _device_of(name, getattr(model, "hf_device_map", {})) == "disk":
            raise UserError(
                f"device_map puts {name!r} on disk, but it is new: the checkpoint does not have it.",
                hint=f"Write the map as a mapping that has {name.rpartition('.')[0]!r} on a GPU or on cpu.",
            )


# Where things are


def is_placed(model: nn.Module) -> bool:
    """Whether accelerate moves inputs and weights of this model; not where its map has a single device."""
    # accelerate's own mark; with one device it moves the model and sets none.
    return hasattr(model, "_hf_hook")


def _hooks(module: nn.Module) -> list[Any]:
    """accelerate's hooks of a module: none, one, or several in a sequence."""
    hook = module.__dict__.get("_hf_hook")
    return [] if hook is None else list(getattr(hook, "hooks", [hook]))


def execution_device(module: nn.Module) -> torch.device:
    """Where a module computes: what accelerate says, else where its first weight is."""
    for part in module.modules():
        # The last hook of a sequence moves the inputs.
        for hook in reversed(_hooks(part)):
            if getattr(hook, "execution_device", None) is not None:
                return torch.device(hook.execution_device)
    first = next(module.parameters(), None)
    return torch.device("cpu") if first is None else first.device


def home_device(model: Any) -> torch.device:
    """Where inputs go: where the embedding computes."""
    if not is_placed(model):
        return next(model.parameters()).device  # type: ignore[no-any-return]
    return execution_device(model.get_input_embeddings())


def execution_devices(model: nn.Module) -> set[torch.device]:
    """All devices on which modules with weights compute; one where weights are only put away."""
    return {execution_device(module) for module in model.modules() if module._parameters}


# Weights that were put away


def tensor_of(module: nn.Module, name: str) -> Any:
    """A tensor of a module (`weight`, `attention.dense.bias`), read from memory or disk where it was put away; None if it
    has none of that name. What is read lies on the device where the module computes."""
    path, _, attribute = name.rpartition(".")
    holder = module.get_submodule(path)
    tensor = getattr(holder, attribute, None)
    if isinstance(tensor, Tensor) and tensor.is_meta:
        for hook in _hooks(holder):
            if getattr(hook, "offload", False):
                return hook.weights_map[attribute].to(execution_device(holder))
    return tensor


def put_away(module: nn.Module) -> str | None:
    """Name of the first weight in a module that is put away between passes, or None."""
    for path, part in module.named_modules():
        if any(getattr(hook, "offload", False) for hook in _hooks(part)):
            for name, _ in part.named_parameters(recurse=False):
                return f"{path}.{name}".lstrip(".")
    return None


def refuse_put_away(module: nn.Module, what: str) -> None:
    """Refuses to change weights that are put away between passes: the next pass would fetch the old ones.

    Raises:
        UserError: some are; `what` says who asked.
    """
    if (name := put_away(module)) is not None:
        raise UserError(
            f"{what} changes the backbone's own weights, and device_map keeps {name!r} in the host's memory or on disk.",
            hint="Map it to a GPU, or leave device_map out; methods that add to weights, such as lora, work with any map.",
        )


def refuse_training(what: str) -> UserError:
    """The error for training a backbone that has a map."""
    return UserError(
        f"{what}: device_map is for inference; for training use torchrun (FSDP2) or quantize: nf4.",
        hint="Leave device_map out, or keep only methods that train nothing: zero_shot, few_shot.",
    )


@contextmanager
def own_forward(module: nn.Module) -> Iterator[None]:
    """Within the block, a module's own forward runs on the tensors that it holds; accelerate's would fetch those that were
    put away over them."""
    # `_old_forward` is where accelerate keeps the forward that it wrapped.
    away = [part for part in module.modules() if put_away(part) is not None and "_old_forward" in part.__dict__]
    with swapped_forward([(part, part.__dict__["_old_forward"]) for part in away]):
        yield
