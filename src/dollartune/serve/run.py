"""Starts a server: backbone, adapters, address."""

from __future__ import annotations

import errno
import gc
import socket
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from dollartune.backbones.weights import DTYPES
from dollartune.errors import UserError
from dollartune.export.opening import open_backbone
from dollartune.methods.stored_adapter import read_info
from dollartune.serve.service import Service
from dollartune.train.precision import default_device

if TYPE_CHECKING:
    from dollartune.backbones.device_map import DeviceMap
    from dollartune.serve.limits import Limits


def build_service(
    backbone: str,
    adapters: Mapping[str, Path],
    limits: Limits,
    adapter_root: Path | None = None,
    dtype: str | None = None,
    quantize: str = "none",
    device: str | None = None,
    device_map: DeviceMap | None = None,
) -> Service:
    """Loads the backbone and its adapters; a device map takes the place of the device.

    Args:
        device: by default the GPU if there is one, as in tuning.
        dtype: of the backbone's weights, in which it computes; by default the weights are those that the adapters were tuned with
            (`served_dtype`), and a processor computes with them in float32, where no answer depends on what is asked beside it.

    Raises:
        UserError: one cannot be loaded, or adapters ask for different objectives or classes.
    """
    if adapter_root is not None and not adapter_root.is_dir():
        raise UserError(f"--adapter-root: there is no folder {str(adapter_root)!r}.")
    infos = {name: read_info(folder) for name, folder in adapters.items()}
    objectives = {str(info.get("objective")) for info in infos.values()}
    if len(objectives) > 1:
        raise UserError(
            f"one server runs one objective; these adapters were tuned for {', '.join(sorted(objectives))}."
        )
    first: dict[str, object] = next(iter(infos.values()), {"objective": None})
    device = str(default_device()) if device is None else _checked_device(device)
    weights = served_dtype(infos) if dtype is None else dtype
    loaded = open_backbone(first, backbone, quantize, weights, device_map)
    if quantize == "none" and device_map is None:
        if dtype is None and torch.device(device).type == "cpu":
            loaded.model.float()  # rounded already as they were in tuning, and cast exactly
        # Its weights have their format already: named again, it would round the fp32 tables of rotary positions, which
        # `predict` has.
        loaded.model.to(device)
    name = Path(backbone).name if Path(backbone).exists() else backbone
    service = Service(loaded, name, limits, adapter_root)
    for adapter, folder in adapters.items():
        service.add_now(adapter, folder)
    return service


def _checked_device(name: str) -> str:
    """A device that is here.

    Raises:
        UserError: it is no device, or none of this machine.
    """
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:  # the second from builds of PyTorch without GPUs
        first = str(error).strip().splitlines()[0]
        raise UserError(
            f"--device {name!r} cannot be used here: {first}", hint="--device cpu, or leave it out."
        ) from None
    return name


def served_dtype(infos: Mapping[str, Mapping[str, Any]]) -> str:
    """The number format of the weights that all these adapters were tuned with, as `predict` and `evaluate` load them, so that
    answers are theirs; float32 where they differ."""
    tuned = {str(info.get("dtype", "float32")) for info in infos.values()}
    name = tuned.pop() if len(tuned) == 1 else "float32"
    return name if name in DTYPES else "float32"


def dtype_notes(service: Service, infos: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """A sentence where adapters are served in another number format than the one that they were tuned in."""
    served = str(service.backbone.model.dtype).removeprefix("torch.")
    others = [name for name, info in infos.items() if str(info.get("dtype", served)) != served]
    if not others:
        return []
    listed = ", ".join(others[:5]) + (" ..." if len(others) > 5 else "")
    tuned = " and ".join(sorted({str(infos[name]["dtype"]) for name in others}))
    alone = ", so that no answer depends on what is asked beside it" if served == "float32" else ""
    return [
        f"{listed}: tuned in {tuned}, served in {served}{alone}; probabilities differ in the second or third digit from those of "
        "`dollartune predict`. Choose with --dtype."
    ]


def serve(
    service: Service,
    host: str,
    port: int,
    api_key: str | None,
    cors_origins: Sequence[str] = (),
    listening: Callable[[str, Sequence[str]], None] = lambda address, models: None,
) -> None:
    """Runs until it is told to stop; what runs then may finish.

    Args:
        listening: called with the address and the names of what is served, once clients can connect.
    """
    try:
        import uvicorn

        from dollartune.serve.app import create_app
    except ImportError as error:
        raise UserError(
            f"the server needs {error.name}, which is not installed.", hint="pip install 'dollartune[serve]'"
        ) from None
    from dollartune.serve.connections import guarded_protocol

    opened = listen(host, port)  # before anything is said: a taken port is an error, not an address
    config = uvicorn.Config(
        create_app(service, api_key, cors_origins),
        http=guarded_protocol(service.limits),
        log_level="warning",
        access_log=False,
        # One second more than the engine lets running texts finish, or uvicorn would cut them off before the engine does.
        timeout_graceful_shutdown=int(service.limits.drain_seconds) + 1,
        # Longer than a client's pause between two requests, shorter than the patience of a proxy that reuses connections.
        timeout_keep_alive=10,
        # Headers above 64 kB are refused; real ones, with long keys, stay below 16 kB.
        h11_max_incomplete_event_size=64_000,
    )
    # Else an event loop that is busy keeps the engine's thread waiting for 5 ms after each tensor operation, of which a pass has
    # a thousand. The loop goes on during each of them.
    sys.setswitchinterval(0.0001)
    # What is there now, some 400,000 objects of libraries, stays: looking through them for garbage takes a fifth of a second, for
    # which every stream would stand still.
    gc.collect()
    gc.freeze()
    shown = f"[{host}]" if ":" in host else host
    listening(f"http://{shown}:{opened.getsockname()[1]}/v1", service.pool.names())
    uvicorn.Server(config).run(sockets=[opened])


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens.

    Raises:
        UserError: the port is taken, or the address is not this machine's.
    """
    try:
        # 1,024 connections may wait to be accepted: a burst of clients must not be turned away by the system.
        return socket.create_server((host, port), family=_family(host), backlog=1024)
    except OSError as error:
        hint = "--port 8001" if error.errno == errno.EADDRINUSE else "--host 127.0.0.1, or 0.0.0.0 for all networks"
        raise UserError(f"cannot listen at {host}:{port}: {error.strerror or error}.", hint=hint) from None


def _family(host: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in host else socket.AF_INET
