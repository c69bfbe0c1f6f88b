"""Translation of matrix products, factorisations, scans and hidden Markov chains."""

import math
from typing import Any

import torch

from inference.native.composed import Composed
from inference.native.schedule import MIN_ROWS
from inference.native.values import (
    BOOL,
    INT,
    REAL,
    Access,
    Literal,
    Tensor,
    contiguous,
    shaped,
    squeezed,
    transposed,
    unsqueezed,
    whole_tensor,
)

# A matrix of at least this many elements is multiplied by a function of the runtime, a smaller one by an unrolled loop.
MIN_MATRIX = 64
# Columns of a tall matrix that is multiplied row by row: what it is multiplied by lies on the stack.
MAX_COLUMNS = 1024


class Dense(Composed):
    """Linear algebra on whole buffers, mostly by functions of the runtime."""

    def aten_mm(self, a: Tensor, b: Tensor) -> Tensor:
        return self.contract(a, b)

    def aten_bmm(self, a: Tensor, b: Tensor) -> Tensor:
        return self.contract(a, b)

    def aten_mv(self, a: Tensor, x: Tensor) -> Tensor:
        return squeezed(self.contract(a, unsqueezed(x, 1)), -1)

    def aten_dot(self, x: Tensor, y: Tensor) -> Tensor:
        return self.program.reduce("sum", self.aten_mul(x, y), [0], keepdim=False)

    def aten_addmm(self, c: Tensor, a: Tensor, b: Tensor, beta: Any = 1, alpha: Any = 1) -> Tensor:
        product = self.contract(a, b)
        product = product if alpha == 1 else self.aten_mul(product, alpha)
        return product if beta == 0 else self.aten_add(product, c if beta == 1 else self.aten_mul(c, beta))

    def aten_addmv(self, c: Tensor, a: Tensor, x: Tensor, beta: Any = 1, alpha: Any = 1) -> Tensor:
        product = self.aten_mv(a, x) if alpha == 1 else self.aten_mul(self.aten_mv(a, x), alpha)
        return product if beta == 0 else self.aten_add(product, c if beta == 1 else self.aten_mul(c, beta))

    def contract(self, a: Tensor, b: Tensor) -> Tensor:
        """Multiply matrices (..., m, k) and (..., k, n)."""
        m, k, n = a.shape[-2], a.shape[-1], b.shape[-1]
        batch = math.prod(a.shape[:-2])
        # loops that the compiler unrolls
        small = k * n <= 64 or k * m <= 64 or batch != 1 or a.dtype != REAL or b.dtype != REAL
        if a.dtype == REAL and batch == 1 and m * k >= MIN_MATRIX and n == 1 and m > 1 and k > 1:
            made = self.program.rows(flat(a), squeezed(flat(b), 1))
            if made is not None:
                return shaped(made, (*a.shape[:-1], 1))
        if batch == 1 and k * n >= MIN_MATRIX and m == 1 and n > 1 and k > 1:
            return transposed(self.contract(transposed(b), transposed(a)))
        if m == 1 or n == 1 or small:
            left, right = unsqueezed(a, len(a.shape) - 1), unsqueezed(transposed(b), len(b.shape) - 2)
            product = self.aten_mul(left, right)  # (..., m, n, k)
            return self.program.reduce("sum", product, [len(product.shape) - 1], keepdim=False)
        made = self.by_rows(flat(a), flat(b))
        if made is not None:
            return Tensor(made.source, (*a.shape[:-1], n), (*(0 for _ in a.shape[:-2]), *made.strides), made.offset)
        return shaped(self.program.call("matmul", [flat(a), flat(b)], (m, n), sizes=(m, k, n)), (*a.shape[:-1], n))

    def by_rows(self, a: Tensor, b: Tensor) -> Tensor | None:
        """Multiply matrices (m, k) and (k, n) of which one dim is long, row by row; None where none is."""
        (m, k), n = a.shape, b.shape[1]
        sums = k >= MIN_ROWS
        if max(m, k, n) < MIN_ROWS or k == 1 or (k > MAX_COLUMNS and not sums):
            return None
        turn = (a.strides[0] == 1 and b.strides[1] != 1) if sums else n > m
        if turn:
            made = self.by_rows(transposed(b), transposed(a))
            return None if made is None else transposed(made)
        tall, other = (b, a) if sums else (a, b)
        if tall.strides[1] != 1 or isinstance(tall.source, Literal):
            tall = shaped(whole_tensor(self.program.whole(tall)), tall.shape)
        if isinstance(other.source, Literal) or not sums:
            other = shaped(whole_tensor(self.program.whole(other)), other.shape)
        down = tall.strides[0]
        op, space, shape, (one, two) = (
            ("add_product_rows", (k, m, n), (m, n), ((down, 0, 1), (other.strides[1], other.strides[0], 0)))
            if sums
            else ("product_rows", (m, n, k), (n, m), ((down, 0, 1), (0, other.strides[1], other.strides[0])))
        )
        args = [Access(tall.source, one, tall.offset), Access(other.source, two, other.offset)]
        made = whole_tensor(self.program.value("rows", op, args, space, shape=shape, dtype=REAL))
        return made if sums else transposed(made)

    def aten_cumsum(self, x: Tensor, dim: int, dtype: torch.dtype | None = None) -> Tensor:
        return self.scan("cumsum", x, dim, dtype)

    def aten_cumprod(self, x: Tensor, dim: int, dtype: torch.dtype | None = None) -> Tensor:
        return self.scan("cumprod", x, dim, dtype)

    def scan(self, op: str, x: Tensor, dim: int, dtype: torch.dtype | None) -> Tensor:
        x = self.cast(x, self.dtype(dtype) if dtype is not None else INT if x.dtype == BOOL else x.dtype)
        if not x.shape or x.shape[dim] == 1 or 0 in x.shape:  # empty: the free coordinates of a simplex of one part
            return x
        dim %= len(x.shape)
        sizes = (math.prod(x.shape[:dim]), x.shape[dim], math.prod(x.shape[dim + 1 :]))
        return shaped(self.program.call(op, [x], x.shape, sizes=sizes, dtype=x.dtype), x.shape)

    def aten_linalg_cholesky_ex(self, a: Tensor, upper: bool = False, **_: Any) -> Any:
        n = a.shape[-1]
        a = transposed(a) if upper else a  # the lower triangle is read
        root = self.program.call("cholesky", [a], a.shape, sizes=(math.prod(a.shape[:-2]), n))
        root = shaped(root, a.shape)
        return (transposed(root) if upper else root), None

    def aten_linalg_inv_ex(self, a: Tensor, check_errors: bool = False) -> Any:
        sizes = (math.prod(a.shape[:-2]), a.shape[-1])
        return shaped(self.program.call("inverse", [a], a.shape, sizes=sizes), a.shape), None

    def aten_linalg_solve_triangular(
        self, a: Tensor, b: Tensor, *, upper: bool, left: bool = True, unitriangular: bool = False
    ) -> Any:
        if not left:  # X A = B is A' X' = B'
            return transposed(
                self.aten_linalg_solve_triangular(
                    transposed(a), transposed(b), upper=not upper, unitriangular=unitriangular
                )
            )
        batch = torch.broadcast_shapes(a.shape[:-2], b.shape[:-2])
        n, m = b.shape[-2], b.shape[-1]
        a, b = a.expand((*batch, n, n)), b.expand((*batch, n, m))
        sizes = (math.prod(batch), n, m, int(upper), int(unitriangular))
        return shaped(self.program.call("solve_triangular", [a, b], b.shape, sizes=sizes), b.shape)

    def aten_triangular_solve(
        self,
        b: Tensor,
        a: Tensor,
        upper: bool = True,
        transpose: bool = False,
        unitriangular: bool = False,
    ) -> Any:
        if transpose:
            a, upper = transposed(a), not upper
        return self.aten_linalg_solve_triangular(a, b, upper=upper, unitriangular=unitriangular), None

    def aten_cholesky_solve(self, b: Tensor, root: Tensor, upper: bool = False) -> Tensor:
        root = transposed(root) if upper else root
        half = self.aten_linalg_solve_triangular(root, b, upper=False)
        return self.aten_linalg_solve_triangular(transposed(root), half, upper=True)

    def aten_cholesky_inverse(self, root: Tensor, upper: bool = False) -> Tensor:
        n = root.shape[-1]
        identity = self.constant(f"identity_{n}", torch.eye(n, dtype=self.real))
        return self.aten_cholesky_solve(identity, root, upper)

    def ppl_markov_log_sum(self, initial: Tensor, transition: Tensor, observation: Tensor) -> Tensor:
        """Value of `inference.markov.log_sum`."""
        return self.markov(initial, transition, observation)[0]

    def ppl_markov_marginals(self, initial: Tensor, transition: Tensor, observation: Tensor) -> list[Tensor]:
        """Gradient of `inference.markov.log_sum`."""
        return self.markov(initial, transition, observation)[1:]

    def markov(self, *arguments: Tensor) -> list[Tensor]:
        """Value and gradient, which one pass over the chain gives together."""
        initial, transition, observation = arguments
        batch, (steps, states) = initial.shape[:-1], observation.shape[-2:]
        shapes = [batch, *(t.shape for t in arguments)]
        sizes = (math.prod(batch), steps, transition.shape[-3], states)
        numbers = [math.prod(shape) for shape in shapes]
        made = self.program.call("markov_log_sum_and_marginals", arguments, (sum(numbers),), sizes=sizes)
        return [
            Tensor(made.source, tuple(shape), contiguous(shape), sum(numbers[:i])) for i, shape in enumerate(shapes)
        ]


def flat(x: Tensor) -> Tensor:
    """Drop leading dims of size 1."""
    return Tensor(x.source, x.shape[-2:], x.strides[-2:], x.offset)
