"""Translation of operations that are a few simpler ones; torch's own decompositions take a second to import."""

import math
from collections.abc import Sequence
from typing import Any

import torch

from inference.native.elementwise import Elementwise
from inference.native.values import BOOL, Tensor, literal


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
        log_sigmoid, _ = self.aten_log_sigmoid_forward(x)
        loss = self.aten_sub(self.aten_mul(self.aten_rsub(target, 1.0), x), log_sigmoid)
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
        return self.aten_where(self.point("le", x, float(threshold), dtype=BOOL), 0.0, grad)

    def aten_leaky_relu(self, x: Tensor, slope: float = 0.01) -> Tensor:
        return self.aten_where(self.greater(x, 0.0), x, self.aten_mul(x, float(slope)))

    def aten_leaky_relu_backward(self, grad: Tensor, x: Tensor, slope: float, is_result: bool) -> Tensor:
        return self.aten_where(self.greater(x, 0.0), grad, self.aten_mul(grad, float(slope)))

    def aten_elu(self, x: Tensor, alpha: float = 1.0, scale: float = 1.0, input_scale: float = 1.0) -> Tensor:
        low = self.aten_mul(self.unary("expm1", self.aten_mul(x, float(input_scale))), float(alpha) * float(scale))
        return self.aten_where(self.greater(x, 0.0), self.aten_mul(x, float(scale)), low)

    def aten_hardtanh(self, x: Tensor, low: float = -1.0, high: float = 1.0) -> Tensor:
        return self.aten_clamp(x, low, high)

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
        weights = self.unary("exp", self.below_largest(x, dim))
        return self.aten_div(weights, self.reduction("sum", weights, [dim], keepdim=True))

    def aten__log_softmax(self, x: Tensor, dim: int, half: bool = False) -> Tensor:
        below = self.below_largest(x, dim)  # no digits are lost to a level that all logits have
        total = self.reduction("sum", self.unary("exp", below), [dim], keepdim=True)
        return self.aten_sub(below, self.unary("log", total))

    def below_largest(self, x: Tensor, dim: int) -> Tensor:
        """Subtract the largest along a dim."""
        return self.aten_sub(x, self.reduction("amax", x, [dim], keepdim=True))

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

    def aten_var(self, x: Tensor, dim: Any = None, correction: Any = None, keepdim: bool = False) -> Tensor:
        return self.aten_var_mean(x, dim, correction, keepdim)[0]

    def aten_std(self, x: Tensor, dim: Any = None, correction: Any = None, keepdim: bool = False) -> Tensor:
        return self.unary("sqrt", self.aten_var(x, dim, correction, keepdim))

    def aten_var_mean(
        self, x: Tensor, dim: Any = None, correction: Any = None, keepdim: bool = False
    ) -> tuple[Tensor, Tensor]:
        dims = list(range(len(x.shape))) if dim in (None, []) else [dim] if isinstance(dim, int) else list(dim)
        mean = self.aten_mean(x, dims, True)
        squares = self.reduction("sum", self.unary("square", self.aten_sub(x, mean)), dims, keepdim=keepdim)
        count = math.prod(x.shape[d] for d in dims) - (1 if correction is None else correction)
        return self.aten_div(squares, float(max(count, 0))), mean if keepdim else self.aten_mean(x, dims)

    def aten_linalg_vector_norm(self, x: Tensor, order: Any = 2, dims: Any = None, keepdim: bool = False) -> Any:
        if order == 2:
            squares = self.reduction("sum", self.unary("square", x), dims, keepdim=keepdim)
            return self.unary("sqrt", squares)
        return self.reduction("sum", self.unary("abs", x), dims, keepdim=keepdim) if order == 1 else NotImplemented

    def aten_tril(self, x: Tensor, diagonal: int = 0) -> Tensor:
        return self.triangle(x, "tril", diagonal)

    def aten_triu(self, x: Tensor, diagonal: int = 0) -> Tensor:
        return self.triangle(x, "triu", diagonal)

    def triangle(self, x: Tensor, which: str, diagonal: int) -> Tensor:
        """Set the other triangle to zero."""
        rows, columns = x.shape[-2:]
        mask = getattr(torch.ones(rows, columns, dtype=torch.bool), which)(diagonal)
        mask = self.constant(f"{which}_{rows}_{columns}_{diagonal}", mask)
        return self.aten_where(mask, x, self.cast(literal(0, ()), x.dtype))
