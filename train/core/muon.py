"""Muon for many small matrices on a GPU: those of one shape are trained as one stack.

Owns: the stacked step. The rule, its settings and its state are `torch.optim.Muon`'s, so that a training goes on with
either; on a CPU it is that class.

A matrix of width 256 keeps a GPU busy for microseconds, and starting its fifteen products takes longer; a stack of all
matrices of a shape takes the same calls once.

Source: Jordan et al. 2024 (Muon); the stack is ours.
"""

import math
from collections import defaultdict
from collections.abc import Callable
from typing import Any, cast

import torch


@torch.no_grad()
def orthogonalize(
    matrices: torch.Tensor, coefficients: tuple[float, float, float], num_steps: int, eps: float
) -> torch.Tensor:
    """Return what Newton-Schulz makes of each of the matrices float (N, r, c): bfloat16, singular values near 1."""
    a, b, c = coefficients
    is_tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.bfloat16()
    x = x.mT if is_tall else x
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=eps)
    for _ in range(num_steps):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT.contiguous() if is_tall else x


class StackedMuon(torch.optim.Muon):
    """`torch.optim.Muon` whose step treats matrices of one shape together, where they lie on a GPU."""

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take one step."""
        if not any(weight.is_cuda for group in self.param_groups for weight in group["params"]):
            return super().step(closure)
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self.step_stacked()
        return loss

    @torch.no_grad()
    def step_stacked(self) -> None:
        """Take one step, matrices of one shape as one stack."""
        for group in self.param_groups:
            by_shape: dict[torch.Size, list[torch.Tensor]] = defaultdict(list)
            for weight in group["params"]:
                if weight.grad is not None:
                    by_shape[weight.shape].append(weight)
            for shape, weights in by_shape.items():
                grads = [cast("torch.Tensor", weight.grad) for weight in weights]
                for weight, grad in zip(weights, grads, strict=True):
                    if "momentum_buffer" not in self.state[weight]:
                        self.state[weight]["momentum_buffer"] = torch.zeros_like(grad)
                momenta = [self.state[weight]["momentum_buffer"] for weight in weights]
                torch._foreach_lerp_(momenta, grads, 1 - group["momentum"])
                wanted = torch._foreach_lerp(grads, momenta, group["momentum"]) if group["nesterov"] else momenta
                found = orthogonalize(torch.stack(wanted), group["ns_coefficients"], group["ns_steps"], group["eps"])
                rate = group["lr"] * _rate_factor(group["adjust_lr_fn"], shape)
                torch._foreach_mul_(weights, 1 - group["lr"] * group["weight_decay"])
                torch._foreach_add_(weights, list(found.to(weights[0].dtype).unbind()), alpha=-rate)


def _rate_factor(rule: str | None, shape: torch.Size) -> float:
    """Return how much larger the rate of a matrix is, by the rule of that name in `torch.optim.Muon`."""
    rows, columns = shape
    if rule in (None, "original"):
        return math.sqrt(max(1.0, rows / columns))
    return 0.2 * math.sqrt(max(rows, columns))
