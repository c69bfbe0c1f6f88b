"""Operations for the tests of native code: name -> (function of tensors, what to call it with).

An argument is written as its shape, after a letter for its kind: "4x3" normal, "" one normal number, "+4x3" positive,
"u5" between 0 and 1, "b5" booleans, "i5:3" integers below 3.
"""

from functools import partial

import torch
import torch.nn.functional as F


def after(first, then):
    """Chain functions, for tables made in a loop."""
    return lambda x, *others: then(first(x), *others)


def named(names, *specs):
    return {name: (getattr(torch, name, None) or getattr(torch.special, name), *specs) for name in names.split()}


POINTWISE = {
    **named(
        "exp expm1 sin cos tan atan sinh cosh tanh abs sign sgn neg sigmoid erf erfc exp2 square "
        "floor ceil round trunc frac asinh isnan isinf isfinite relu ndtr erfcx log_ndtr",
        "5x3",
    ),
    **named("log log1p sqrt rsqrt reciprocal lgamma log2 log10 entr digamma", "+5x3"),
    **named("asin acos atanh erfinv logit", "u9"),
    "acosh": (lambda x: torch.acosh(x + 1), "+9"),
    "lgamma_below_0": (torch.lgamma, "9"),
    **{
        name: (getattr(F, name), "6x2")
        for name in ["softplus", "logsigmoid", "elu", "selu", "silu", "leaky_relu", "hardtanh"]
    },
    "softplus_beta": (lambda x: F.softplus(x, beta=2.0, threshold=3.0), "6x2"),
    "nan_to_num": (lambda x: torch.nan_to_num(x.log(), nan=0.5), "7"),
    "logit_eps": (lambda x: torch.logit(x, 1e-6), "u5"),
    "mvlgamma": (lambda x: torch.mvlgamma(x + 3, 3), "+5"),
    "clamp": (lambda x: (x.clamp(-0.5, 0.7), x.clamp(min=0.1), x.clamp(max=0.1)), "5x3"),
    "clamp_tensor": (lambda x, y, z: (torch.clamp(x, y, z), torch.clamp(x, min=y)), "5x3", "3", ""),
    **{f"power_{p}": (lambda x, p=p: x**p, "+5") for p in (0.5, -0.5, 1.5, -1.5, 1 / 3, True)},
    **{f"power_of_any_{p}": (lambda x, p=p: x**p, "5") for p in (0, 1, 2, 3, 4, 5, -1, -2, -3)},
    "power": (lambda x, y: x**y, "+5x2", "2"),
    "power_of_number": (lambda x: (2.0**x, torch.pow(0.7, x.T)), "5x2"),
    "xlogy": (lambda x, y, i: (torch.xlogy(x * (x > 0), y), torch.xlogy(2, y), torch.xlogy(i, y)), "9", "+9", "i9:3"),
    "xlog1py": (torch.special.xlog1py, "4", "+4"),
    "numbers": (lambda x: (3 - x, 2 / x, x / 3, x * -1, x.neg().neg(), x * 1, x + 0, 0 - x, x - 0.0), "4x2"),
    "alpha": (
        lambda x, y: (torch.add(x, y, alpha=2.5), torch.sub(x, y, alpha=-2), torch.rsub(x, y, alpha=2)),
        "4",
        "3x4",
    ),
    "scaled": (
        lambda x, y, z: (torch.addcmul(x, y, z, value=0.3), torch.addcdiv(x, y, z, value=0.3)),
        "4",
        "4",
        "+3x4",
    ),
    "where": (lambda b, x, y: (torch.where(b, x, y), torch.where(b, x, 0.0), torch.where(b, 1, x)), "b4x3", "4x3", "3"),
    "where_row": (lambda x, y, b: (torch.where(x[:, :1] > 0, x, y), torch.where(b, x, -1.0)), "4x3", "4x3", "b"),
    "masked_fill": (lambda x, b, y: (x.masked_fill(b, -2.0), x.masked_fill(b, y)), "4x3", "b3", ""),
    "compare": (lambda x, y: (x > y, x >= y, x < y, x <= y, x == y, x != y, x > 0, x < 1, x > 1.0), "5x3", "3"),
    "division": (lambda x, y: [torch.div(x, y, rounding_mode=m) for m in ("floor", "trunc")], "9", "9"),
    "modulo": (lambda x, y: (torch.fmod(x, y), torch.remainder(x, y), x % 0.7), "9", "9"),
}
BINARY = ["add", "sub", "mul", "div", "maximum", "minimum", "atan2", "hypot", "logaddexp", "fmax", "fmin", "copysign"]
BROADCAST = {
    "same": ("4x3", "4x3"),
    "number": ("4x3", ""),
    "row": ("4x3", "3"),
    "cross": ("4x1", "1x5"),
    "batch": ("2x4x1", "1x5"),
}
for name in BINARY:
    POINTWISE |= {f"{name}_{how}": (getattr(torch, name), *specs) for how, specs in BROADCAST.items()}
    POINTWISE[f"{name}_turned"] = (after(lambda x: x.T, getattr(torch, name)), "3x4", "4x3")

WHOLE_NUMBERS = {
    "arithmetic": (lambda i, j: (i * 3 + j - 2, i / (j + 1), -i, (i - 3).abs(), torch.sign(i - 2)), "i6x1:5", "i2:3"),
    "powers": (lambda i, x: (i**2, i**0, x * i**3, torch.square(i), torch.sgn(i - 1)), "i5:4", "5"),
    "division": (lambda i, j: ((i - 3) // (j + 1), (i - 3) % (j + 1), torch.fmod(i - 3, j + 1)), "i9:7", "i9:3"),
    "extremes": (lambda i: ((i - 7).amax(0), (i - 7).amin(0), (i - 7).max(), (i - 7).min()), "i6x3:5"),
    "places": (lambda i: (*(i - 7).max(0), *(i - 7).min(1), i.argmax(1)), "i6x3:5"),
    "sums": (lambda i, x: (i.sum(0), i.prod(1), i.cumsum(0), i.sum(1, dtype=x.dtype) * x), "i6x3:5", "6"),
    "mixed": (lambda i, x: (torch.maximum(i - 2, i * 2) + x, i.clamp(1, 2), i.clamp(min=1.5), i < x), "i6:5", "6"),
    "compare": (lambda i: (i > 2, i == 1, i >= 2.5, i != 0), "i5:4"),
    "as_index": (lambda i, x: (x[i.floor()], x[(i + 1) % 5], torch.where(i > 2, i, x)), "i5:5", "5"),
    "masks": (lambda b: (b.any(), b.all(), b.any(0), b.all(1), b.sum(), b.sum(0), b.amax(0), b.amin(1)), "b6x3"),
    "masks_counted": (lambda b: (b.cumsum(0), b.cumsum(1), b[:, :1].cumsum(1)), "b6x3"),
    "logic": (lambda b, c: (~b, b & c, b | c, b ^ c, torch.logical_and(b, c), torch.logical_xor(b, c)), "b5", "b5"),
    "logic_of_numbers": (lambda i, x: (torch.logical_and(i, x), torch.logical_or(i, x > 3), ~i.bool()), "i7:2", "7"),
    "masks_times": (lambda b, x: (b * x, b + 1, b * 2.5, b.to(x.dtype), torch.where(b, x, 2)), "b5", "5"),
    "fills": (lambda x: [torch.full_like(x, 2, dtype=d) + x.long() for d in (torch.int64, torch.bool)], "4"),
}

REDUCTIONS = {
    f"{name}_{dims}": (partial(getattr(torch, name), dim=dims), "3x4x5")
    for name in ["sum", "mean", "prod", "amax", "amin", "logsumexp"]
    for dims in (0, 1, -1, *([] if name == "prod" else [(0, 2), (1, 2), (0, 1, 2)]))
}
for name in ["sum", "mean", "prod", "amax", "logsumexp"]:
    REDUCTIONS |= {
        f"{name}_{how}": (after(turn, partial(getattr(torch, name), dim=1)), spec)
        for how, (turn, spec) in {
            "repeated": (lambda x: x.expand(3, 4, 5), "3x1x5"),
            "broadcast": (lambda x: x.expand(6, 5), "5"),
            "turned": (lambda x: x.permute(2, 0, 1), "3x4x5"),
            "equal_sizes": (lambda x: x.transpose(0, 2) * x, "4x4x4"),
            "of_one": (lambda x: x, "3x1x5"),
            "flipped": (lambda x: x.flip(1)[::2], "5x3"),
        }.items()
    }
    REDUCTIONS[f"{name}_kept"] = (partial(getattr(torch, name), dim=1, keepdim=True), "3x4x5")
REDUCTIONS |= {
    "all": (lambda x: (x.sum(), x.prod(), x.max(), x.min(), x.mean(), x.logsumexp((0, 1))), "3x4"),
    "number": (lambda x: (x.sum(), x.sum(0), x.max(), x.cumsum(0), torch.softmax(x, 0)), ""),
    "places": (lambda x: (*x.max(1), *x.min(0), *x.max(1, keepdim=True), *x[:, :1].max(1), x.argmin(0)), "3x4"),
    "two": (lambda x, y: (torch.max(x, y), torch.min(x, y)), "3x4", "4"),
    "spread": (lambda x: (x.var(0), x.std(1, correction=0), *torch.var_mean(x), x.std()), "5x3"),
    "norms": (lambda x: (x.norm(), torch.linalg.vector_norm(x, dim=1), x.norm(1, dim=0)), "5x3"),
    "scans": (lambda x: (x.cumsum(0), x.cumsum(-1), x.cumprod(0), x.cumprod(-1), x.T.cumsum(0)), "4x3x2"[:3]),
    "scans_of_nothing": (lambda x: (x, x[:0].cumsum(0), x[:, :0].cumsum(0), x[:0].cumprod(-1)), "4x3"),
    "scans_of_views": (lambda x: (x.expand(4, 3).cumsum(0), x[:, None].cumsum(1), x.flip(0).cumsum(0).flip(0)), "3"),
    "softmax": (lambda x: (torch.softmax(x, 0), torch.softmax(x, -1), torch.log_softmax(x, 1)), "4x3x2"),
    "softmax_far": (lambda x: (torch.softmax(300 * x, 1), torch.log_softmax(x + 1e6, 1)), "4x5"),
    "logsumexp_infinite": (lambda x: torch.logsumexp(torch.where(x > 0, x, -torch.inf), 0), "5x4"),
    "cross_entropy": (lambda x, i: (F.cross_entropy(x, i), F.cross_entropy(x, i, reduction="none")), "5x4", "i5:4"),
    "bernoulli": (
        lambda x, y: [F.binary_cross_entropy_with_logits(x, y, reduction=r) for r in ("none", "sum", "mean")],
        "5x3",
        "u5x3",
    ),
    "bernoulli_weighted": (lambda x, y: F.binary_cross_entropy_with_logits(x, y, y.detach()), "5x3", "u5x3"),
    "layers": (lambda x, w, b: torch.tanh(F.linear(x, w, b)), "7x5x3", "4x3", "4"),
    "nothing": (lambda x: (x[:0].sum(0), x[:0].prod() + x[0], torch.cat([x[:0], x]), (x[:0] > 0).any()), "4x3"),
}
