"""Functions of tensors made at random: chains of views, arithmetic, reductions, look-ups and products."""

import random

import numpy as np
import torch
import torch.nn.functional as F

SIZES = (1, 1, 2, 2, 3, 4, 5, 7, 8, 9, 16, 17)
ROWS = (0, 0, 0, 2048, 2049, 2300, 4096)  # 0: no dim that is computed in blocks
MAX_NUMBERS = 40_000

# None of them steep: a random chain would multiply rounding errors without bound.
UNARY = [
    torch.tanh,
    torch.sigmoid,
    F.softplus,
    F.logsigmoid,
    torch.square,
    torch.neg,
    torch.abs,
    torch.erf,
    torch.relu,
    lambda x: torch.sin(torch.tanh(x)),
    lambda x: torch.exp(torch.tanh(x)),
    lambda x: torch.expm1(-x * x),
    lambda x: torch.sqrt(x.abs() + 0.1),
    lambda x: torch.log1p(x * x),
    lambda x: torch.lgamma(x.abs() + 0.5),
    lambda x: x.clamp(-0.5, 0.5),
    lambda x: 1 / (1 + x * x),
    lambda x: torch.where(x > 0, x, 0.1 * x),
    lambda x: x * (x > 0),
    lambda x: (1.3 + torch.tanh(x)) ** 1.7,
    lambda x: torch.tanh(x) ** 3,
    lambda x: 2.5 - x,
    lambda x: -x * -1.0,
    lambda x: x.detach() + x,
]
BINARY = [
    torch.add,
    torch.sub,
    torch.mul,
    torch.maximum,
    torch.minimum,
    torch.logaddexp,
    lambda a, b: a / (1.5 + torch.tanh(b)),
    lambda a, b: torch.where(a > b, a, 0.5 * b),
    lambda a, b: torch.lerp(a, b, 0.3),
    lambda a, b: a * b + a,
]


def random_program(seed):
    """Make a program: the shapes of its arguments, and a function of them that gives all that it makes on the way."""
    rng = random.Random(seed)
    rows = rng.choice(ROWS)
    shapes = [_shape(rng, rows) for _ in range(rng.randint(1, 3))]
    length, seed = rng.randint(3, 8), rng.random()

    def function(*arguments):
        rng, have = random.Random(seed), list(arguments)
        for _ in range(length):
            made = _step(rng, rng.choice(have[-3:]), have)
            if made is not None and 0 < made.numel() <= MAX_NUMBERS:
                have.append(torch.tanh(made) if rng.random() < 0.3 else made)
        return tuple(have[len(arguments) :]) or (1 * have[0],)

    return shapes, function


def _shape(rng, rows):
    shape = [rng.choice(SIZES) for _ in range(rng.choice((0, 1, 1, 2, 2, 2, 3)))]
    if rows and shape and rng.random() < 0.7:
        shape = [n for n in shape if n < 6][:2]
        shape.insert(rng.choice((0, 0, len(shape))), rows)
    return shape


def _step(rng, x, have):
    """Make a tensor of one or two others; None where that was not possible."""
    kinds = [_unary] * 3 + [_binary] * 2 + [_view, _reduced, _reduced, _scanned, _looked_up, _looked_up]
    kind = rng.choice([*kinds, _joined, _padded, _product, _masked])
    if x.dim() == 0 and kind not in (_unary, _binary):
        return x.expand(rng.choice((2, 3, 5)), rng.choice((1, 4))) if kind is _view else _unary(rng, x, have)
    return kind(rng, x, have)


def _unary(rng, x, have):
    return rng.choice(UNARY)(x)


def _binary(rng, x, have):
    others = rng.sample(have, len(have))
    for y in others:
        try:
            torch.broadcast_shapes(x.shape, y.shape)
        except RuntimeError:
            continue
        return rng.choice(BINARY)(x, y)
    return None


def _view(rng, x, have):
    dim, size = _dim(rng, x)
    divisors = [n for n in (2, 3, 4, 5) if size % n == 0]
    views = [
        lambda: x.permute(rng.sample(range(x.dim()), x.dim())),
        lambda: x.flip(dim),
        lambda: x.unsqueeze(rng.randint(0, x.dim())),
        lambda: x.unsqueeze(0).expand(rng.choice((2, 3)), *x.shape),
        lambda: x.unsqueeze(-1).expand(*x.shape, rng.choice((2, 3))),
        lambda: x.reshape(-1),
        lambda: x.select(dim, rng.randrange(size)),
        lambda: x[(slice(None),) * dim + (slice(rng.randrange(size), None, rng.choice((1, 1, 2, 3))),)],
        lambda: x.diagonal(rng.choice((0, 0, 1, -1)), *rng.sample(range(x.dim()), 2)) if x.dim() > 1 else x,
        lambda: x.unflatten(dim, (-1, rng.choice(divisors))) if divisors else x.squeeze(),
        lambda: x.squeeze(),
    ]
    return rng.choice(views)()


def _reduced(rng, x, have):
    dims, keep = rng.sample(range(x.dim()), rng.randint(1, x.dim())), rng.random() < 0.4
    reductions = [
        lambda: x.sum(dims, keepdim=keep),
        lambda: x.sum(dims, keepdim=keep),
        lambda: x.mean(dims, keepdim=keep),
        lambda: x.amax(dims, keepdim=keep),
        lambda: torch.logsumexp(x, dims, keepdim=keep),
        lambda: x.max(dims[0], keepdim=keep)[0],
        lambda: (1 + 0.1 * torch.tanh(x)).prod(dims[0], keepdim=keep) if x.shape[dims[0]] < 99 else x.amin(dims[0]),
    ]
    return rng.choice(reductions)()


def _scanned(rng, x, have):
    dim, _ = _dim(rng, x)
    scans = [
        lambda: 0.1 * x.cumsum(dim),
        lambda: (1 + 0.1 * torch.tanh(x)).cumprod(dim),
        lambda: torch.softmax(x, dim),
        lambda: torch.log_softmax(x, dim),
    ]
    return rng.choice(scans)()


def _looked_up(rng, x, have):
    dim, size = _dim(rng, x)
    constants = np.random.default_rng(rng.randrange(10**6))
    if rng.random() < 0.5:  # some twice, some from the end
        count = rng.choice((1, 2, 3, 6, size))
        places = torch.from_numpy(constants.integers(-size, size, count))
        return x[(slice(None),) * dim + (places,)] if count * x.numel() // size <= MAX_NUMBERS else None
    places = torch.from_numpy(constants.integers(0, size, tuple(x.shape)))
    return x.gather(dim, places) if rng.random() < 0.5 else (0.5 * x).scatter_add(dim, places, x)


def _joined(rng, x, have):
    dim, _ = _dim(rng, x)
    other = rng.choice([x, x.flip(dim), 2 * x])
    return torch.cat([x, other], dim) if rng.random() < 0.5 else torch.stack([x, other], rng.randint(0, x.dim()))


def _padded(rng, x, have):
    if rng.random() < 0.5:
        low = rng.choice((0, 1, 2, -1 if x.shape[-1] > 1 else 0))
        return F.pad(x, (low, rng.choice((0, 1))), value=rng.choice((0.0, 0.5)))
    if x.dim() > 1:
        return x.tril() if rng.random() < 0.5 else x.triu(1)
    return torch.select_scatter(x, 0.01 * x.sum(), 0, rng.randrange(x.shape[0]))


def _product(rng, x, have):
    if x.dim() == 1 or (x.dim() > 2 and x.shape[-2] > 99):
        return x * x.sum() * 0.01
    if x.dim() > 2:
        return 0.1 * x @ x.mT
    products = [
        lambda: 0.1 * x @ x.T if x.shape[0] ** 2 <= MAX_NUMBERS else None,
        lambda: 0.1 * x.T @ x if x.shape[1] ** 2 <= MAX_NUMBERS else None,
        lambda: x @ torch.tanh(x[0]),
        lambda: 0.1 * torch.tanh(x[:, 0]) @ x,
    ]
    return rng.choice(products)()


def _masked(rng, x, have):
    mask = torch.from_numpy(np.random.default_rng(rng.randrange(10**6)).random(tuple(x.shape)) < 0.5)
    return rng.choice([lambda: x.masked_fill(mask, 0.3), lambda: torch.where(mask, x, -x), lambda: x[mask]])()


def _dim(rng, x):
    dim = rng.randrange(x.dim())
    return dim, x.shape[dim]
