"""Shared parts of both trainers: worker processes, averaged weights and checkpoints.

On CPUs each worker is one process with one thread: a team of threads that meets at a barrier after every operation
crawls as soon as anything else runs on the machine, while processes that meet once per step do not.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import pathlib
import socket
from collections.abc import Callable, Iterator

import torch
import torch.distributed as dist


def add_worker_arguments(parser: argparse.ArgumentParser) -> None:
    """--work, --seed, --device and --workers."""
    parser.add_argument("--work", type=pathlib.Path, required=True, help="the directory of checkpoints")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--workers", type=int, help="data-parallel processes of one thread; on CPUs one per core, on a GPU 1")


def launch(worker: Callable[[int, argparse.Namespace], None], args: argparse.Namespace) -> None:
    """Runs `worker(rank, args)`, in the current process for rank 0 and in child processes for the others."""
    if args.workers is None:
        args.workers = 1 if args.device.startswith("cuda") else os.cpu_count()
    args.work.mkdir(parents=True, exist_ok=True)
    if args.workers == 1:
        worker(0, args)
        return
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    context = torch.multiprocessing.get_context("spawn")
    children = [context.Process(target=_join, args=(worker, rank, args, port), daemon=True) for rank in range(1, args.workers)]
    for child in children:
        child.start()
    _join(worker, 0, args, port)
    for child in children:
        child.join()


def _join(worker: Callable[[int, argparse.Namespace], None], rank: int, args: argparse.Namespace, port: int) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=args.workers)
    worker(rank, args)
    dist.destroy_process_group()


def world() -> tuple[int, int]:
    """This process's rank and the number of workers."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


def sum_over_workers(tensors: list[torch.Tensor]) -> None:
    """Replaces each tensor by its sum over the workers."""
    if not dist.is_initialized():
        return
    flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
    dist.all_reduce(flat)
    offset = 0
    for tensor in tensors:
        tensor.copy_(flat[offset : offset + tensor.numel()].view(tensor.shape))
        offset += tensor.numel()


def average_gradients(parameters: list[torch.nn.Parameter], shared: torch.Tensor) -> None:
    """Averages the gradients over the workers, and gives every worker rank 0's values of `shared`."""
    rank, count = world()
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    if rank != 0:
        shared.zero_()
    sum_over_workers([*gradients, shared])
    if count > 1:
        torch._foreach_div_(gradients, float(count))


class Ema:
    """An exponential moving average of the parameters of several named modules."""

    def __init__(self, modules: dict[str, torch.nn.Module], decay: float) -> None:
        self.modules = modules
        self.decay = decay
        self.average = {key: value.detach().clone() for key, value in self._parameters()}

    def _parameters(self) -> Iterator[tuple[str, torch.nn.Parameter]]:
        for name, module in self.modules.items():
            for key, value in module.named_parameters():
                yield f"{name}.{key}", value

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Moves the average towards the parameters; early steps average over a shorter time."""
        weight = 1.0 - min(self.decay, (step + 1) / (step + 10))
        keys, values = zip(*self._parameters())
        torch._foreach_lerp_([self.average[key] for key in keys], [value.detach() for value in values], weight)

    @contextlib.contextmanager
    def applied(self) -> Iterator[None]:
        """Puts the averaged parameters into the modules for the length of the context."""
        kept = {key: value.detach().clone() for key, value in self._parameters()}
        with torch.no_grad():
            for key, value in self._parameters():
                value.copy_(self.average[key])
        try:
            yield
        finally:
            with torch.no_grad():
                for key, value in self._parameters():
                    value.copy_(kept[key])


def save_checkpoint(path: pathlib.Path, modules: dict[str, torch.nn.Module], optimizer: torch.optim.Optimizer, ema: Ema, state: dict) -> None:
    """Writes everything that resuming needs; the file is replaced in one step."""
    part = path.with_suffix(".part")
    torch.save(
        {
            "modules": {name: module.state_dict() for name, module in modules.items()},
            "optimizer": optimizer.state_dict(),
            "ema": ema.average,
            "state": state,
        },
        part,
    )
    os.replace(part, path)


def load_checkpoint(path: pathlib.Path, modules: dict[str, torch.nn.Module], optimizer: torch.optim.Optimizer, ema: Ema) -> dict | None:
    """Restores what `save_checkpoint` wrote and returns its state, or None where there is no checkpoint."""
    if not path.exists():
        return None
    saved = torch.load(path, map_location="cpu", weights_only=True)
    for name, module in modules.items():
        module.load_state_dict(saved["modules"][name])
    optimizer.load_state_dict(saved["optimizer"])
    for key, value in saved["ema"].items():
        ema.average[key].copy_(value)
    return saved["state"]
