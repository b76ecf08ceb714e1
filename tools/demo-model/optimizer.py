"""Muon for the weight matrices and convolutions, AdamW for everything else.

Muon orthogonalises the momentum of each matrix by a Newton-Schulz iteration (Jordan et al., 2024), scaled so that an
update has the size of AdamW's (Liu et al., 2025), which lets both share one learning rate. The iterations are divided
over the workers.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

import torch

from training import sum_over_workers, world

NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)


def orthogonalise(matrices: torch.Tensor, steps: int = 5) -> torch.Tensor:
    """Moves the singular values of each [rows, columns] matrix of a batch close to 1."""
    a, b, c = NEWTON_SCHULZ
    wide = matrices if matrices.size(-2) <= matrices.size(-1) else matrices.mT
    x = wide / (wide.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(steps):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x if matrices.size(-2) <= matrices.size(-1) else x.mT


class MuonAdamW(torch.optim.Optimizer):
    """Parameters named in `plain`, and all with fewer than two axes, take AdamW steps; the others take Muon steps."""

    def __init__(self, named: Iterable[tuple[str, torch.nn.Parameter]], plain: tuple[str, ...], lr: float, weight_decay: float = 0.01) -> None:
        matrices, others = [], []
        for name, parameter in named:
            simple = parameter.ndim < 2 or any(part in name for part in plain)
            (others if simple else matrices).append(parameter)
        groups = [{"params": matrices, "muon": True}, {"params": others, "muon": False}]
        super().__init__(groups, {"lr": lr, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        for group in self.param_groups:
            parameters = [parameter for parameter in group["params"] if parameter.grad is not None]
            if group["muon"]:
                self._muon(parameters, group["lr"], group["weight_decay"])
            else:
                self._adamw(parameters, group["lr"])

    def _muon(self, parameters: list[torch.nn.Parameter], lr: float, weight_decay: float, momentum: float = 0.95) -> None:
        rank, count = world()
        by_shape = defaultdict(list)
        updates = []
        for index, parameter in enumerate(parameters):
            state = self.state[parameter]
            if not state:
                state["momentum"] = torch.zeros_like(parameter)
            state["momentum"].lerp_(parameter.grad, 1 - momentum)
            direction = parameter.grad.lerp(state["momentum"], momentum).flatten(1)
            updates.append(torch.zeros_like(direction))
            if index % count == rank:
                by_shape[direction.shape].append((index, direction))
        for (rows, columns), items in by_shape.items():
            scale = 0.2 * max(rows, columns) ** 0.5
            for (index, _), update in zip(items, orthogonalise(torch.stack([direction for _, direction in items]))):
                updates[index] = update * scale
        sum_over_workers(updates)
        for parameter, update in zip(parameters, updates):
            parameter.mul_(1 - lr * weight_decay).add_(update.view(parameter.shape), alpha=-lr)

    def _adamw(self, parameters: list[torch.nn.Parameter], lr: float, betas: tuple[float, float] = (0.9, 0.99)) -> None:
        for parameter in parameters:
            state = self.state[parameter]
            if not state:
                state |= {"step": 0, "mean": torch.zeros_like(parameter), "square": torch.zeros_like(parameter)}
            state["step"] += 1
            state["mean"].lerp_(parameter.grad, 1 - betas[0])
            state["square"].lerp_(parameter.grad.square(), 1 - betas[1])
            mean = state["mean"] / (1 - betas[0] ** state["step"])
            square = state["square"] / (1 - betas[1] ** state["step"])
            parameter.addcdiv_(mean, square.sqrt_().add_(1e-8), value=-lr)
