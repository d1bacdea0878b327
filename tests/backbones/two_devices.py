"""Passes through a backbone spread over two devices that do not exist: torch's fake tensors, which compute nothing but know
where they would be, and refuse what two devices cannot do together. Run by test_device_map.py in a process of its own, as a
device can be made up once only.

    python two_devices.py llama
"""

import sys
from typing import Any

import torch
from accelerate import hooks
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.backend_registration import _DummyBackendModule, _setup_privateuseone_for_python_backend
from transformers.cache_utils import DynamicLayer

from dollartune.attachment.attached import Assignment, Attached
from dollartune.attachment.stacking import StackedAdapters
from dollartune.backbones.device_map import _apart, execution_device, execution_devices, home_device
from dollartune.backbones.loading import anatomy_of
from dollartune.methods.registry import build_method
from dollartune.testing.tiny import meta_backbone

METHODS = (
    "lora",
    "dora",
    "vera",
    "ia3",
    "houlsby",
    "compacter",
    "reft",
    "norm",
    "prompt(tokens=4)",
    "prefix(tokens=4)",
)
FEWER = ("lora", "norm", "houlsby", "prefix")
"""One of each kind of edit, on families beside LLaMA: what differs between families is where they are put."""


class Devices(_DummyBackendModule):
    def device_count(self) -> int:
        return 2

    def is_available(self) -> bool:
        return True


class Fake(FakeTensorMode):
    """Where code asks for a number, every number is one."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default:
            return 1.0 if args[0].is_floating_point() else args[0].dtype == torch.bool or 1
        if func is torch.ops.aten.equal.default:
            return False
        return super().__torch_dispatch__(func, types, args, kwargs)


def moved(module: nn.Module, function: Any, recurse: bool = True) -> nn.Module:
    """In place of `Module._apply`, which cannot swap fake parameters."""
    for part in module.modules():
        for name, parameter in part._parameters.items():
            if parameter is not None:
                part._parameters[name] = nn.Parameter(function(parameter), parameter.requires_grad)
        for name, buffer in part._buffers.items():
            part._buffers[name] = None if buffer is None else function(buffer)
    return module


def begin_cache(layer: Any, keys: torch.Tensor, values: torch.Tensor) -> None:
    """In place of a cache's beginning, which would make an empty tensor past the fake mode."""
    layer.dtype, layer.device, layer.is_initialized = keys.dtype, keys.device, True
    layer.keys, layer.values = keys[:, :, :0], values[:, :, :0]


def tensor(data: Any, *, dtype: Any = None, device: Any = None, made: Any = torch.tensor) -> torch.Tensor:
    """In place of `torch.tensor`, for the same reason."""
    return made(data, dtype=dtype).to(device or "cpu")  # type: ignore[no-any-return]


def spread(model: nn.Module, far: set[str]) -> None:
    """Puts weights and accelerate's hooks on `made:0`, and those of some modules on `made:1`."""
    places = dict(_apart("", model, {"": 0, **dict.fromkeys(far, 1)}, None))
    for name, module in model.named_modules():
        own = next((d for path, d in places.items() if name == path or name.startswith(f"{path}.")), 0)
        for tensors in (module._parameters, module._buffers):
            for key, tensor in tensors.items():
                if tensor is not None:
                    empty = torch.empty(tensor.shape, dtype=tensor.dtype, device=f"made:{own}")
                    tensors[key] = nn.Parameter(empty, False) if tensors is module._parameters else empty
    devices = {path: torch.device("made", own) for path, own in {**places, "": 0}.items()}
    hooks.attach_align_device_hook_on_blocks(
        model, execution_device=devices, offload=dict.fromkeys(places, False),
        skip_keys=model._skip_keys_device_placement, tied_params_map={},
    )  # fmt: skip


@torch.no_grad()
def main(family: str) -> None:
    _setup_privateuseone_for_python_backend("made", Devices())
    tiny = meta_backbone(family)
    model = tiny.model
    nn.Module._apply, DynamicLayer.lazy_initialization = moved, begin_cache  # type: ignore[method-assign, assignment]
    hooks.AlignDevicesHook.init_hook = lambda self, module: module
    torch.tensor = tensor  # type: ignore[assignment]
    with Fake(allow_non_fake_inputs=True):
        anatomy = anatomy_of(model)
        layers = anatomy.at("layer")
        spread(model, {site.exit for site in layers if site.layer == anatomy.layer_counts[site.stack] - 1})
        home = torch.device("made:0")
        assert home_device(model) == home
        assert len(execution_devices(model)) == 2
        ids = torch.ones(3, 9, dtype=torch.long, device=home)
        inputs = {"input_ids": ids, "attention_mask": ids}
        if anatomy.kind == "encoder_decoder":
            inputs["decoder_input_ids"] = ids[:, :4]
        keep = torch.zeros(2, dtype=torch.long, device=home), torch.ones(2, dtype=torch.long, device=home)
        for method in METHODS if family == "llama" else FEWER:
            attached = Attached(model, anatomy)
            own, other = (attached.add(name, [build_method(method)]) for name in ("own", "other"))
            for site, edit in own.items():
                assert {p.device for p in edit.parameters()} <= {execution_device(model.get_submodule(site.exit))}
            rows = torch.zeros(3, dtype=torch.long).to(home)
            both = [Assignment(own, slice(0, 1)), Assignment(other, slice(1, 3))]
            routes = [[Assignment(own, slice(None))], both]
            if method != "norm":
                routes.append([Assignment(StackedAdapters([own, other]).gather(rows), slice(0, 3))])  # type: ignore[arg-type]
            for route in routes:
                with attached.routed(*route, batch_rows=3):
                    assert attached(keep=keep, **inputs).logits.device == home
            attached.detach()
            print(method, flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
