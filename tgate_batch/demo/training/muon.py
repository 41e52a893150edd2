"""Muon: momentum whose matrices are orthogonalised before each step (Jordan et al., 2024).

https://kellerjordan.github.io/posts/muon/
"""

import torch


class Muon(torch.optim.Optimizer):
    """Nesterov momentum, orthogonalised; a convolution's kernel is read as (out, in x h x w)."""

    def __init__(self, params, lr: float = 0.02, momentum: float = 0.95) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure=None) -> None:
        """Update every parameter that has a gradient."""
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is None:
                    continue
                state = self.state[weight]
                if not state:
                    state["average"] = torch.zeros_like(weight)
                average = state["average"].lerp_(weight.grad, 1 - group["momentum"])
                update = weight.grad.lerp(average, group["momentum"])
                rows, columns = weight.shape[0], weight[0].numel()
                step = orthogonalised(update.reshape(rows, columns)).reshape(weight.shape)
                weight.add_(step, alpha=-group["lr"] * max(1, rows / columns) ** 0.5)


def orthogonalised(matrix: torch.Tensor, iterations: int = 5) -> torch.Tensor:
    """Roughly U V^T of a matrix U S V^T (rows, columns): all singular values brought near 1.

    Newton-Schulz iteration with the quintic coefficients of the post named above.
    """
    a, b, c = 3.4445, -4.7750, 2.0315
    flat = matrix.shape[0] > matrix.shape[1]
    x = matrix.T if flat else matrix
    x = x / (x.norm() + 1e-7)
    for _ in range(iterations):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.T if flat else x
