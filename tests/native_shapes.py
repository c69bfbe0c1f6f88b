"""Operations for the tests of native code that move numbers, or combine whole tensors; see `native_cases`."""

from functools import partial

import torch
import torch.nn.functional as F

from inference.markov import log_sum
from tests.native_cases import after

ROWS = 2300  # enough for loops to run in blocks of rows, and no multiple of a block
MASK = torch.tensor([True, False, True, True])
PLACES = torch.tensor([0, 2, 2, -1, 1])  # twice the same, and from the end


def spd(x):
    """Make a positive definite matrix."""
    return x @ x.mT + x.shape[-1] * eye(x)


def eye(x):
    return torch.eye(x.shape[-1], dtype=x.dtype)


def assigned(x, place, y):
    x = x.clone()
    x[place] = y
    return x


VIEWS = {
    "turned": lambda x: (x.T, x.unsqueeze(0).permute(2, 0, 1), x.unsqueeze(0).movedim(0, 1), x.mT),
    "reshaped": lambda x: (x.view(-1), x.T.reshape(-1), x.T.reshape(2, 6), x.unflatten(1, (2, 2)), x.unsqueeze(0)),
    "expanded": lambda x: (x.unsqueeze(1).expand(3, 2, 4), x.expand(5, -1, -1), x.repeat(2, 3), x[0].repeat(2, 1)),
    "sliced": lambda x: (
        x[1:, ::2],
        x[-2:, :-1],
        x[1],
        x[:, -1],
        x.narrow(1, 1, 2),
        x[:1].squeeze(0),
        x[:1, :1].squeeze(),
    ),
    "flipped": lambda x: (x.flip(1), x.flip(0, 1)[1:].T, x.flip(0).reshape(-1), x.flip(1)[:, ::2].flip(0), x.rot90()),
    "diagonals": lambda x: (x.diagonal(), x.diagonal(1), x.diagonal(-1), torch.diag(x[0]), torch.diag_embed(x)),
    "parts": lambda x: (
        *x.unbind(1),
        *x.split(3, 1),
        x.split([1, 3], 1)[1],
        x.chunk(2, 1)[1],
        *x.detach().unfold(1, 2, 1),
    ),
    "triangles": lambda x: (x.tril(), x.triu(1), x.tril(-1), (x > 0).tril(), torch.trace(x)),
    "rolled": lambda x: (x.roll(1, 1), torch.roll(x, (1, -1), (0, 1)), x.repeat_interleave(2, dim=0)),
    "joined": lambda x: (
        torch.hstack([x, x[:, :1]]),
        torch.dstack([x, x]),
        torch.block_diag(x, x[:1]),
        torch.kron(x, x),
    ),
    "outer": lambda x: (torch.outer(x[0], x[:, 1]), torch.meshgrid(x[0], x[1], indexing="ij")[1], x.mT.contiguous()),
    "copies": lambda x: (x, x.clone(), x.detach(), x.T, x.exp(), x.exp().T, x.exp()[0]),
}
PLACED = {
    **{f"view_{name}": (f, "3x4") for name, f in VIEWS.items()},
    **{f"view_of_value_{name}": (after(torch.exp, f), "3x4") for name, f in VIEWS.items()},
    "copy_of_one": (lambda x, y, z: (x, y, z, torch.ones(3, dtype=x.dtype), 0 * x), "1", "", "1x1"),
    "cat": (
        lambda x, y, z: (torch.cat([x, y * 2, x.exp()]), torch.cat([x, z], -1), torch.cat([x.flip(0), x])),
        "2x3",
        "1x3",
        "2x1",
    ),
    "cat_mixed": (
        lambda i, x: (torch.cat([i, x]), torch.cat([torch.zeros(1, dtype=x.dtype), x]), x.expand(2, 3)),
        "i2:3",
        "3",
    ),
    "stack": (lambda x, y: (torch.stack([x, y, x * y]), torch.stack([x]), torch.cat([x[None], y[None]])), "", ""),
    "stack_inside": (lambda x, y: (torch.stack([x, y], 1), torch.stack([x, y], -1)), "3x2", "3x2"),
    **{
        f"pad_{p}": (lambda x, p=p: F.pad(x, p), "3x4") for p in ((1, 0), (1, 2, 0, 1), (-1, 1), (1, -1, 0, -1), (0, 0))
    },
    "pad_value": (lambda x: (F.pad(x.flip(0), (1, 1), value=2.5), F.pad(x, (-2, 2)), F.pad(x.exp(), (0, 1))), "2"),
    "slice_scatter": (
        lambda x, y, z: (torch.slice_scatter(x, y, 0, 1, 3), torch.select_scatter(x, z, 1, -1)),
        "4x3",
        "2x3",
        "4",
    ),
    "diagonal_scatter": (lambda x, y: (torch.diagonal_scatter(x, y), torch.diagonal_scatter(x, y[:2], 1)), "4x3", "3"),
    "index": (lambda x: (x[PLACES], x.T[:, PLACES], x.flip(0)[PLACES], x.exp()[PLACES], x[:, None, PLACES % 3]), "4x3"),
    "index_two": (lambda x: (x[PLACES, PLACES % 3], x[PLACES[:, None], torch.tensor([0, 2])]), "4x3"),
    "index_apart": (lambda x: x[PLACES, :, torch.tensor([0, 1, 0, 1, -1])], "4x3x2"),
    "index_of_one": (lambda x: (x[0 * PLACES], x.exp()[0 * PLACES], x.exp()[None][0 * PLACES, 0 * PLACES]), "1"),
    "index_of_repeated": (lambda x: (x.expand(4, 3)[PLACES], x.expand(4, 3).gather(0, PLACES[:4, None] % 4)), "3"),
    "index_given": (lambda x, i, j: (x[i], x[i, j], x[i - 4], x[i.expand(2, 6)], x[1:, j]), "4x3", "i6:4", "i6:3"),
    "index_of_numbers": (
        lambda x, i: (torch.ones(4, dtype=x.dtype)[i] * x, torch.arange(8).view(2, 4)[:, i] * x),
        "6",
        "i6:4",
    ),
    "index_number": (lambda x, i: (x[i], x.gather(0, i.expand(1, 3)), x[:, 0].exp()[i]), "4x3", "i:4"),
    "index_select": (lambda x, i, j: (torch.index_select(x, 1, i), F.embedding(j, x)), "3x4", "i6:4", "i2x6:3"),
    "gather": (
        lambda x, i, j: (x.gather(1, i), x.exp().gather(0, j), x.exp()[:1, :1].gather(1, 0 * i[:1])),
        "3x4",
        "i3x6:4",
        "i2x3:3",
    ),
    "mask": (lambda x: (x[MASK], x.T[:, MASK], x[MASK & ~MASK].sum() + x.sum(), x[MASK | ~MASK]), "4x3"),
    "mask_two_dims": (lambda x: x[torch.tensor([[True, False], [True, True]])], "2x2x3"),
    "mask_written": (
        lambda x, y: (assigned(x, MASK, y), assigned(x, MASK, 2.0), assigned(x, x > 0, 0.5)),
        "4x3",
        "3x3",
    ),
    "write": (
        lambda x, y: (
            x.index_put((torch.tensor([0, 2]),), y),
            assigned(x, (slice(None), [0, 2]), y.T @ y[:, :2] * 0 + 1),
        ),
        "3x3",
        "2x3",
    ),
    "add": (
        lambda x, y, i: (x.index_put((i,), y, accumulate=True), x.index_put((i,), y[0], accumulate=True)),
        "4x3",
        "6x3",
        "i6:4",
    ),
    "add_to_one": (lambda x, y: x.exp().index_put((0 * PLACES,), y, accumulate=True), "1", "5"),
    "scatter": (
        lambda x, y: (x.scatter(0, torch.tensor([2, 0]), y), x.scatter(0, torch.tensor([2, 0]), 1.5)),
        "4",
        "2",
    ),
    "scatter_add": (lambda x, y, i: (x.scatter_add(0, i, y), x.exp().scatter_add(0, i, y)), "4", "6", "i6:4"),
    "scatter_add_corner": (lambda x, y, i: x.scatter_add(1, i, y.detach()), "3x4", "3x6", "i2x5:4"),
    "index_add": (lambda x, y, i: (x.index_add(0, i, y), x.T.index_add(1, i, y.T, alpha=2)), "4x3", "6x3", "i6:4"),
}

PRODUCTS = {
    f"product_{m}_{k}_{n}{turned}": (lambda a, b, t=turned: a.T @ b.T if t else a @ b, *specs)
    for m, k, n in ((2, 3, 4), (1, 5, 3), (3, 1, 2), (9, 7, 1), (16, 16, 1), (1, 16, 16), (20, 30, 10), (65, 70, 9))
    for turned, specs in (("", (f"{m}x{k}", f"{k}x{n}")), ("_turned", (f"{k}x{m}", f"{n}x{k}")))
}
PRODUCTS |= {
    f"vector_{m}_{k}": (
        lambda a, x: (a @ x, x.flip(0) @ a.T, a.flip(0, 1) @ x.exp(), a[:, ::2] @ x[::2]),
        f"{m}x{k}",
        f"{k}",
    )
    for m, k in ((1, 1), (3, 4), (10, 7), (64, 1), (1, 64), (100, 3), (3, 100), (33, 65))
}
PRODUCTS |= {
    "batch": (
        lambda a, b: (a @ b, a[:1].bmm(b[:1]), a[:1].bmm(b[:1, :, :1]), a[:1, :1].bmm(b[:1])),
        "3x14x15",
        "3x15x12",
    ),
    "batch_broadcast": (lambda a, b, x: (a @ b, b.mT @ a.mT, b @ x, a @ b[0] @ x), "2x1x4x5", "3x5x2", "2"),
    "dot": (
        lambda a, b: (a @ b, torch.dot(a[:1], b[:1]), a @ a, a.flip(0) @ b, torch.inner(a, b.expand(2, -1))),
        "300",
        "300",
    ),
    "einsum": (lambda a, b: (torch.einsum("bi,bij,bj->b", b, a, b), torch.einsum("bij->bj", a)), "2x3x3", "2x3"),
    "repeated": (lambda a: (a.expand(20, 9) @ a, a[:, None].expand(9, 20) @ a.expand(20, 9), a @ a.expand(9, 9)), "9"),
    "integers": (lambda i, j: (i[:3, :4] @ j[:4, :2], i @ j, i @ j[:, 0]), "i13x14:5", "i14x12:5"),
    **{
        f"{name}_{beta}": (partial(getattr(torch, name), beta=beta, alpha=2.5), *specs)
        for name, specs in {
            "addmm": ("4", "3x5", "5x4"),
            "addmv": ("3", "3x5", "5"),
            "baddbmm": ("2x3x4", "2x3x5", "2x5x4"),
            "addr": ("3x4", "3", "4"),
        }.items()
        for beta in (0, 1, 1.5)
    },
}

FACTORS = {
    **{f"cholesky_{s}": (lambda x: torch.linalg.cholesky(spd(x)), s) for s in ("1x1", "5x5", "12x12", "2x2x3x3")},
    "cholesky_triangles": (
        lambda x: [torch.linalg.cholesky(0.01 * x + 4 * eye(x), upper=upper) for upper in (False, True)],
        "5x5",
    ),
    **{
        f"solve_{upper}_{left}_{unit}": (
            lambda a, b, u=upper, s=left, n=unit: torch.linalg.solve_triangular(
                a + 3 * eye(a), b if s else b.mT, upper=u, left=s, unitriangular=n
            ),
            "4x4",
            "4x3",
        )
        for upper in (False, True)
        for left in (False, True)
        for unit in (False, True)
    },
    "solve_batches": (
        lambda a, b: [
            torch.linalg.solve_triangular(x.tril() + 3 * eye(a), y, upper=False)
            for x, y in ((a, b), (a[0], b), (a, b[0]))
        ],
        "3x4x4",
        "3x4x2",
    ),
    "inverse": (lambda x: (torch.linalg.inv(x + 3 * eye(x)), torch.inverse(x.flip(-1))), "2x5x5"),
    "inverse_of_one": (lambda x: torch.linalg.inv(x), "1x1"),
    "cholesky_solve": (lambda x, b: torch.cholesky_solve(b, torch.linalg.cholesky(spd(x))), "4x4", "4x2"),
    "cholesky_inverse": (lambda x: torch.cholesky_inverse(torch.linalg.cholesky(spd(x))), "4x4"),
    "gaussian_process": (
        lambda x, y: (
            torch.linalg.solve_triangular(
                torch.linalg.cholesky(torch.exp(-((x[:, None] - x) ** 2).sum(-1)) + eye(x[:, 0])),
                y[:, None],
                upper=False,
            )
            .square()
            .sum()
        ),
        "6x2",
        "6",
    ),
    "markov": (lambda i, t, o: log_sum(i, t, o), "3", "1x3x3", "7x3"),
    "markov_batch": (lambda i, t, o: log_sum(i, t, o), "2x1x3", "7x3x3", "4x7x3"),
}

BLOCKS = {
    "sums": (
        lambda x, y: ((x * y).exp().sum(0), (x * y).exp().sum(1), (x * y).exp().sum(), ((x - y) ** 2).sum(0)),
        f"{ROWS}x3",
        "3",
    ),
    "sums_turned": (lambda x: ((2 * x.T).exp().sum(0), (2 * x.T).exp().sum(1)), f"3x{ROWS}"),
    "batch": (
        lambda x, y: ((x * y).exp().sum((0, 2)), (x * y).exp().sum((0, 1)), (x * y).exp().sum(1)),
        f"2x{ROWS}x3",
        "3",
    ),
    "extremes": (
        lambda x: (x.amax(0), x.exp().amax(1), x.amin(), (x > 3).any(), (x > -9).all(), (1 + x * 1e-3).prod()),
        f"{ROWS}x2",
    ),
    "logistic": (lambda x, b: F.binary_cross_entropy_with_logits(x @ b, (x[:, 0] > 0).to(x.dtype)), f"{ROWS}x5", "5"),
    "products": (
        lambda x, b: (x @ b, x.T @ (x @ b).sin(), torch.log_softmax(x @ b.view(3, 3)[:, :2].repeat(3, 1), 1).sum(0)),
        f"{ROWS}x9",
        "9",
    ),
    "product_turned": (lambda x, b: torch.sigmoid(x.T @ b), f"5x{ROWS}", "5"),
    "mixture": (
        lambda x, b: (torch.logsumexp(x[:, None] - b, -1), torch.logsumexp(x[:, None] - b, -1).sum()),
        f"{ROWS}",
        "4",
    ),
    "groups": (
        lambda x, i, y: ((x[i] ** 2).sum(), ((y - x[i]) ** 2).sum(0), x.index_add(0, i, y.exp())),
        "7x2",
        f"i{ROWS}:7",
        f"{ROWS}x2",
    ),
    "own_rows": (
        lambda x, i: (x.exp().gather(1, i[:, None])[:, 0].sum(), x.exp()[torch.arange(ROWS), i]),
        f"{ROWS}x4",
        f"i{ROWS}:4",
    ),
    "other_rows": (
        lambda x, i: (x.exp()[i] * x, x.exp().flip(0) * x.exp(), x.exp().index_add(0, i, x.exp())),
        f"{ROWS}",
        f"i{ROWS}:{ROWS}",
    ),
    "neighbours": (
        lambda x: (((x[1:] - x[:-1]) ** 2).sum(), (x.exp()[1:] * x.exp()[:-1]).cumsum(0), x.exp() * x.exp()[0]),
        f"{ROWS}",
    ),
    "every_other": (
        lambda x: x.exp()[::2].sum() + x.exp()[1::2].cos().sum() + x.exp().view(-1, 2).sum(1).log().sum(),
        f"{2 * ROWS}",
    ),
    "normalised": (
        lambda x: (torch.softmax(x, 1)[:, 0], x.exp() / x.exp().sum(1, keepdim=True), x - x.mean(0)),
        f"{ROWS}x4",
    ),
    "joined": (
        lambda x: (torch.cat([x.exp(), x.sin()]), torch.stack([x.exp(), x.sin()], 1).prod(1), x.cumsum(0).tanh()),
        f"{ROWS}",
    ),
    "reshaped": (
        lambda x: (x.exp().reshape(-1)[:ROWS] * x.exp()[:, 0], x.exp()[:, 1] + x.exp()[:, 0].flip(0)),
        f"{ROWS}x2",
    ),
    "a_block": (lambda x: (x.exp().sum(), (2 * x).exp().cumsum(0)), "2048"),
    "a_block_and_one": (lambda x: (x.exp().sum(), (2 * x).exp().cumsum(0)), "2049"),
    "no_blocks": (lambda x: (x.exp().sum(), (2 * x).exp().cumsum(0)), "2047"),
    "outer": (
        lambda x, y: (x[:, None] * y).tanh().sum(1) + (x[:, None] * y[:3]).tanh().sum(1),
        f"{ROWS}",
        f"{ROWS // 20}",
    ),
}
