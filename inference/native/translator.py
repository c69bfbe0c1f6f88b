"""What the translation of every operation needs: constants, types, and element-by-element operations."""

from typing import Any

import torch

from inference.native.values import BOOL, INT, REAL, Literal, Program, Tensor, Unsupported, Value, empty, literal


class Translator:
    """A program under construction.

    Operations are translated by methods named as ATen names them, ``aten_mul`` for ``aten.mul``, in the classes that
    build on this one. A method returns NotImplemented where torch should take the operation apart.
    """

    def __init__(self, real: torch.dtype) -> None:
        self.real = real
        self.program = Program()
        self.constants: list[tuple[Value, str, torch.Tensor]] = []

    def dtype(self, dtype: torch.dtype) -> str:
        """Name a dtype in the program."""
        if dtype == torch.bool:
            return BOOL
        if dtype == self.real:
            return REAL
        if dtype == torch.int64:
            return INT
        raise Unsupported(f"{dtype} beside {self.real}")

    def widened(self, value: torch.Tensor) -> torch.Tensor:
        """Convert a constant as torch does where it meets an operand of the program's dtypes."""
        if value.dtype in (torch.int8, torch.int16, torch.int32):
            return value.long()
        narrow = self.real == torch.float64 and value.dtype in (torch.float16, torch.bfloat16, torch.float32)
        return value.double() if narrow else value

    def constant(self, name: str, value: torch.Tensor) -> Tensor:
        """Hand in a constant where it lies in memory, with its own strides."""
        value = self.widened(value.detach().resolve_neg())
        if value.numel() == 0:
            return empty(value.shape, self.dtype(value.dtype))
        if value._is_zerotensor():  # has no memory
            return self.cast(literal(0, value.shape), self.dtype(value.dtype))
        made = self.program.value(
            "constant", name, (), (), shape=tuple(value.shape), dtype=self.dtype(value.dtype), detail=value.stride()
        )
        if all(made is not known for known, _, _ in self.constants):
            self.constants.append((made, name, value))
        strides = tuple(0 if n == 1 else s for n, s in zip(value.shape, value.stride(), strict=True))
        return Tensor(made, tuple(value.shape), strides)

    def tensor(self, x: Any) -> Tensor:
        """Take a number for a tensor of no dims."""
        return x if isinstance(x, Tensor) else literal(x, ())

    def point(self, op: str, *operands: Any, dtype: str) -> Tensor:
        """Apply an operation element by element."""
        return self.program.pointwise(op, *(self.tensor(x) for x in operands), dtype=dtype)

    def cast(self, x: Any, dtype: str) -> Tensor:
        """Convert to a dtype of the program."""
        x = self.tensor(x)
        if x.dtype == dtype:
            return x
        if isinstance(x.source, Literal):
            return literal({REAL: float, INT: int, BOOL: bool}[dtype](x.source.number), x.shape)
        return self.point({REAL: "real", INT: "int", BOOL: "bool"}[dtype], x, dtype=dtype)

    def common(self, *operands: Any) -> tuple[list[Tensor], str]:
        """Convert operands to their common type."""
        tensors = [self.tensor(x) for x in operands]
        dtype = next((d for d in (REAL, INT) if any(t.dtype == d for t in tensors)), BOOL)
        return [self.cast(t, dtype) for t in tensors], dtype
