"""Translation of operations that are a few simpler ones; torch's own decompositions take a second to import."""

import math
from collections.abc import Sequence
from typing import Any

import torch

from inference.native.elementwise import Elementwise
from inference.native.values import BOOL, REAL, Tensor, literal


class Composed(Elementwise):
    """Softplus, sigmoids, softmaxes, means, triangles."""

    def log1p_exp_minus_abs(self, x: Tensor) -> Tensor:
        """Give log(1 + exp(-|x|)), which never overflows."""
        return self.unary("log1p", self.unary("exp", self.unary("neg", self.unary("abs", x))))

    def aten_log_sigmoid_forward(self, x: Tensor) -> tuple[Tensor, None]:
        return self.aten_sub(self.aten_minimum(x, 0.0), self.log1p_exp_minus_abs(x)), None

    def aten_log_sigmoid_backward(self, grad: Tensor, x: Tensor, _: Any) -> Tensor:
        return self.aten_mul(grad, self.unary("sigmoid", self.unary("neg", x)))

    def aten_binary_cross_entropy_with_logits(
        self, x: Tensor, target: Tensor, weight: Any = None, pos_weight: Any = None, reduction: int = 1
    ) -> Any:
        if pos_weight is not None:
            return NotImplemented
        loss = self.aten_sub(self.aten_maximum(x, 0.0), self.aten_mul(x, target))
        loss = self.aten_add(loss, self.log1p_exp_minus_abs(x))
        loss = loss if weight is None else self.aten_mul(loss, weight)
        if reduction == 0:
            return loss
        total = self.reduction("sum", loss, None, keepdim=False)
        return total if reduction == 2 else self.aten_div(total, float(math.prod(loss.shape)))

    def aten_softplus(self, x: Tensor, beta: float = 1.0, threshold: float = 20.0) -> Tensor:
        scaled = self.aten_mul(x, float(beta))
        soft = self.aten_div(self.unary("log1p", self.unary("exp", scaled)), float(beta))
        return self.aten_where(self.greater(scaled, threshold), x, soft)

    def aten_softplus_backward(self, grad: Tensor, x: Tensor, beta: float, threshold: float) -> Tensor:
        scaled = self.aten_mul(x, float(beta))
        inside = self.aten_mul(grad, self.unary("sigmoid", scaled))
        return self.aten_where(self.greater(scaled, threshold), grad, inside)

    def greater(self, x: Tensor, number: float) -> Tensor:
        """Compare with a number."""
        return self.point("gt", x, float(number), dtype=BOOL)

    def aten_threshold_backward(self, grad: Tensor, x: Tensor, threshold: float) -> Tensor:
        return self.aten_where(self.greater(x, threshold), grad, 0.0)

    def aten_tanh_backward(self, grad: Tensor, y: Tensor) -> Tensor:
        return self.aten_mul(grad, self.aten_rsub(self.aten_mul(y, y), 1.0))

    def aten_logsumexp(self, x: Tensor, dims: Sequence[int], keepdim: bool = False) -> Tensor:
        dims = [dims] if isinstance(dims, int) else dims
        largest = self.reduction("amax", x, dims, keepdim=True)
        infinite = self.point("isinf", largest, dtype=BOOL)
        shift = self.aten_where(infinite, 0.0, largest)
        total = self.reduction("sum", self.unary("exp", self.aten_sub(x, shift)), dims, keepdim=True)
        made = self.aten_add(self.unary("log", total), shift)
        return made if keepdim else self.program.reduce("sum", made, dims, keepdim=False)  # over dims of size 1

    def aten__softmax(self, x: Tensor, dim: int, half: bool = False) -> Tensor:
        return self.unary("exp", self.aten__log_softmax(x, dim, half))

    def aten__log_softmax(self, x: Tensor, dim: int, half: bool = False) -> Tensor:
        return self.aten_sub(x, self.aten_logsumexp(x, [dim], keepdim=True))

    def aten__softmax_backward_data(self, grad: Tensor, y: Tensor, dim: int, dtype: Any) -> Tensor:
        total = self.reduction("sum", self.aten_mul(grad, y), [dim], keepdim=True)
        return self.aten_mul(y, self.aten_sub(grad, total))

    def aten__log_softmax_backward_data(self, grad: Tensor, y: Tensor, dim: int, dtype: Any) -> Tensor:
        total = self.reduction("sum", grad, [dim], keepdim=True)
        return self.aten_sub(grad, self.aten_mul(self.unary("exp", y), total))

    def aten_mean(self, x: Tensor, dims: Any = None, keepdim: bool = False, dtype: Any = None) -> Tensor:
        dims = list(range(len(x.shape))) if dims in (None, []) else [dims] if isinstance(dims, int) else list(dims)
        count = math.prod(x.shape[d] for d in dims)
        return self.aten_div(self.reduction("sum", x, dims, keepdim=keepdim, dtype=dtype), float(count))

    def aten_tril(self, x: Tensor, diagonal: int = 0) -> Tensor:
        return self.triangle(x, "tril", diagonal)

    def aten_triu(self, x: Tensor, diagonal: int = 0) -> Tensor:
        return self.triangle(x, "triu", diagonal)

    def triangle(self, x: Tensor, which: str, diagonal: int) -> Tensor:
        """Set the other triangle to zero."""
        rows, columns = x.shape[-2:]
        mask = getattr(torch.ones(rows, columns, dtype=torch.bool), which)(diagonal)
        mask = self.constant(f"{which}_{rows}_{columns}_{diagonal}", mask)
        return self.aten_where(mask, x, self.cast(literal(0.0, ()), x.dtype if x.dtype != BOOL else REAL))
