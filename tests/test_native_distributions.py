"""Log densities of Pyro's distributions in native code, and their gradients, against torch."""

import math
from functools import partial

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.distributions import constraints
from torch.distributions import biject_to

from inference import isolated
from inference.graph import Recording, record
from inference.native import Unsupported, compile_graph
from inference.native.compiler import find_compiler
from tests.native_programs import argument, difference

pytestmark = pytest.mark.skipif(find_compiler() is None, reason="there is no C++ compiler here")


def tensor(*numbers):
    return torch.tensor(numbers, dtype=torch.float64)


def at(distribution, *specs):
    """Log density at a value that is the first argument."""
    return (lambda x, *params: distribution(*params).log_prob(x), *specs)


def given(value, distribution, *specs):
    """Log density at a known value."""
    return (lambda *params: distribution(*params).log_prob(value), *specs)


def spd(x):
    return x @ x.mT + x.shape[-1] * torch.eye(x.shape[-1])


def tril(x):
    return x.tril(-1) + torch.diag_embed(x.diagonal(dim1=-2, dim2=-1).exp())


def unconstrained(u, distribution):
    """Log density over the unconstrained space, where it is easier to draw a point."""
    transform = biject_to(distribution.support)
    x = transform(u)
    return distribution.log_prob(x) + transform.log_abs_det_jacobian(u, x)


def unit(x):
    return x / x.norm(dim=-1, keepdim=True)


def standard(size, scale=1.0):
    return dist.Normal(torch.zeros(size), scale).to_event(1)


def gaussian_hmm(F, H, scale):
    return dist.GaussianHMM(standard(2), F, standard(2, scale), H, standard(3), duration=4)


COUNTS, TRIALS, BITS = tensor(0, 1, 3, 2, 7), tensor(9, 9, 9, 5, 8), tensor(0, 1, 1, 0, 1)
STATES = torch.tensor([0, 2, 1, 2, 0])
ONE_HOT, SIMPLEX = torch.eye(3, dtype=torch.float64)[STATES], torch.softmax(tensor(*range(12)).view(4, 3) / 5, -1)
MASK = torch.tensor([True, False, True, True, False])
SOME = tensor(1.0, math.nan, 2.0, 3.0, math.nan)

LOC_SCALE = ("5", "5", "+5")
CONTINUOUS = {
    **{
        name: at(getattr(dist, name), *LOC_SCALE)
        for name in ("Normal", "Cauchy", "Laplace", "Gumbel", "Logistic", "SoftLaplace", "VonMises")
    },
    **{name: at(getattr(dist, name), *LOC_SCALE, "+5") for name in ("SkewLogistic", "AsymmetricLaplace")},
    **{name: at(getattr(dist, name), "+5", "+5") for name in ("HalfNormal", "HalfCauchy", "Exponential", "Chi2")},
    **{
        name: at(getattr(dist, name), "+5", "+5", "+5")
        for name in ("Gamma", "InverseGamma", "Weibull", "FisherSnedecor")
    },
    "StudentT": at(dist.StudentT, "5", "+", "5", "+5"),
    "SoftAsymmetricLaplace": at(dist.SoftAsymmetricLaplace, *LOC_SCALE, "+5", "+5"),
    "TruncatedPolyaGamma": at(lambda: dist.TruncatedPolyaGamma(torch.zeros(())), "u5"),
    "LogNormal": at(dist.LogNormal, "+5", "5", "+5"),
    "Pareto": at(lambda s, a: dist.Pareto(0.01 * s, a), "+5", "+5", "+5"),
    "GeneralizedPareto": at(lambda s, c: dist.GeneralizedPareto(torch.zeros(()), s, c), "+5", "+5", "+5"),
    "Beta": at(dist.Beta, "u5", "+5", "+5"),
    "Kumaraswamy": at(dist.Kumaraswamy, "u5", "+5", "+5"),
    "ContinuousBernoulli": at(lambda p: dist.ContinuousBernoulli(logits=p), "u5", "5"),
    "Uniform": at(lambda a, b: dist.Uniform(-a - 9, b + 9), "5", "+5", "+5"),
    "AffineBeta": at(lambda a, b, m, s: dist.AffineBeta(a, b, m - 9, s + 20), "5", "+5", "+5", "", "+"),
    "FoldedDistribution": at(lambda m, s: dist.FoldedDistribution(dist.Normal(m, s)), "+5", "5", "+5"),
    "RelaxedBernoulli": at(lambda p: dist.RelaxedBernoulli(tensor(0.7)[0], logits=p), "u5", "5"),
    "RelaxedOneHotCategorical": given(
        SIMPLEX, lambda p: dist.RelaxedOneHotCategorical(tensor(0.7)[0], logits=p), "4x3"
    ),
    "LogisticNormal": given(SIMPLEX, dist.LogisticNormal, "4x2", "+4x2"),
    "ImproperUniform": at(lambda: dist.ImproperUniform(constraints.real, (5,), ()), "5"),
    "NanMaskedNormal": given(SOME, dist.NanMaskedNormal, "5", "+5"),
    "MaskedDistribution": at(lambda m, s: dist.Normal(m, s).mask(MASK), *LOC_SCALE),
    "Independent": at(lambda m, s: dist.Normal(m, s).to_event(1), "4x3", "3", "+3"),
    "ExpandedDistribution": at(lambda m, s: dist.Normal(m, s).expand([4, 3]), "4x3", "", "+"),
    "Delta": (lambda x, m: dist.Delta(x.detach(), m).log_prob(x.detach()), "3", "3"),
    "MaskedMixture": at(
        lambda m, s: dist.MaskedMixture(MASK, dist.Normal(m, 1.0).expand([5]), dist.Normal(0.0, s).expand([5])),
        *("5", "", "+"),
    ),
    "MixtureSameFamily": at(
        lambda w, m, s: dist.MixtureSameFamily(dist.Categorical(logits=w), dist.Normal(m, s)), "5", "3", "3", "+3"
    ),
    "GroupedNormalNormal": at(
        lambda m, s, o: dist.GroupedNormalNormal(m, s, o, torch.tensor([0, 1, 1, 0, 2])), "5", "3", "+3", "+5"
    ),
    "TransformedDistribution": at(
        lambda m, s: dist.TransformedDistribution(dist.Normal(m, s), [dist.transforms.TanhTransform()]), "u5", "5", "+5"
    ),
}

DISCRETE = {
    "Poisson": given(COUNTS, dist.Poisson, "+5"),
    "GammaPoisson": given(COUNTS, dist.GammaPoisson, "+5", "+5"),
    "Bernoulli": given(BITS, lambda p, q: dist.Bernoulli(p * torch.sigmoid(q)), "u5", "5"),
    "Geometric": given(COUNTS, lambda p: dist.Geometric(logits=p), "5"),
    "Binomial": given(COUNTS, lambda p: dist.Binomial(TRIALS, logits=p), "5"),
    "ExtendedBinomial": given(COUNTS, lambda p: dist.ExtendedBinomial(TRIALS, logits=p), "5"),
    "NegativeBinomial": given(COUNTS, lambda r, p: dist.NegativeBinomial(r, logits=p), "+5", "5"),
    "BetaBinomial": given(COUNTS, lambda a, b: dist.BetaBinomial(a, b, TRIALS), "+5", "+5"),
    "ExtendedBetaBinomial": given(COUNTS, lambda a, b: dist.ExtendedBetaBinomial(a, b, TRIALS), "+5", "+5"),
    "LogNormalNegativeBinomial": given(
        COUNTS, lambda m, s: dist.LogNormalNegativeBinomial(tensor(3.0)[0], m, s), "5", "+5"
    ),
    "ZeroInflatedPoisson": given(COUNTS, lambda r, g: dist.ZeroInflatedPoisson(r, gate=g), "+5", "u5"),
    "ZeroInflatedNegativeBinomial": given(
        COUNTS, lambda r, p, g: dist.ZeroInflatedNegativeBinomial(r, logits=p, gate_logits=g), "+5", "5", "5"
    ),
    "ZeroInflatedDistribution": given(
        COUNTS, lambda r, g: dist.ZeroInflatedDistribution(dist.Poisson(r), gate=g), "+5", "u5"
    ),
    "Categorical": given(STATES, lambda p, q: dist.Categorical(p + torch.softmax(q, -1)), "u5x3", "3"),
    "OrderedLogistic": given(STATES, lambda x, c: dist.OrderedLogistic(x, c.cumsum(0) - 3), "5", "+2"),
    "OneHotCategorical": given(ONE_HOT, lambda p: dist.OneHotCategorical(logits=p), "5x3"),
    "Multinomial": given(tensor(1, 2, 3), lambda p: dist.Multinomial(6, logits=p), "3"),
    "DirichletMultinomial": given(tensor(1, 2, 3), lambda a: dist.DirichletMultinomial(a, tensor(6.0)[0]), "+3"),
    "CoalescentTimes": given(tensor(-0.5, -1.1, -2.3), partial(dist.CoalescentTimes, tensor(0, 1, 2, 3)), "+"),
    "CoalescentTimesWithRate": given(
        tensor(0.1, 0.2, 0.3), partial(dist.CoalescentTimesWithRate, tensor(1, 2, 3, 4)), "+6"
    ),
    "OneOneMatching": given(torch.tensor([1, 0, 2]), dist.OneOneMatching, "3x3"),
    "OneTwoMatching": given(torch.tensor([0, 0, 1, 1]), dist.OneTwoMatching, "4x2"),
    "SpanningTree": given(torch.tensor([[0, 1], [0, 2]]), dist.SpanningTree, "3"),
    "Empirical": given(tensor(2.0)[0], lambda w: dist.Empirical(tensor(1.0, 2.0, 3.0), w), "3"),
    "Unit": given(torch.zeros(4, 0), dist.Unit, "4"),
}

MULTIVARIATE = {
    "Dirichlet": (lambda x, a: dist.Dirichlet(a).log_prob(torch.softmax(x, -1)), "4x3", "+3"),
    "MultivariateNormal": at(lambda m, s: dist.MultivariateNormal(m, spd(s)), "5x3", "3", "3x3"),
    "MultivariateNormal by precision": at(
        lambda m, s: dist.MultivariateNormal(m, precision_matrix=spd(s)), "5x3", "3", "3x3"
    ),
    "MultivariateNormal by factor": at(
        lambda m, s: dist.MultivariateNormal(m, scale_tril=tril(s)), "5x3", "5x3", "5x3x3"
    ),
    "MultivariateStudentT": at(lambda n, m, s: dist.MultivariateStudentT(n, m, tril(s)), "5x3", "+", "3", "3x3"),
    "LowRankMultivariateNormal": at(dist.LowRankMultivariateNormal, "5x4", "4", "4x2", "+4"),
    "NanMaskedMultivariateNormal": given(
        torch.stack([SOME[:3], SOME[2:] ** 2]), lambda m, s: dist.NanMaskedMultivariateNormal(m, spd(s)), "3", "3x3"
    ),
    "OMTMultivariateNormal": at(lambda m, s: dist.OMTMultivariateNormal(m, tril(s)), "5x3", "3", "3x3"),
    "AVFMultivariateNormal": at(lambda m, s, c: dist.AVFMultivariateNormal(m, tril(s), c), "5x3", "3", "3x3", "2x2x3"),
    "LKJCholesky": (lambda u, eta: unconstrained(u, dist.LKJCholesky(4, eta)), "6", "+"),
    "LKJ": (lambda u, eta: unconstrained(u, dist.LKJ(3, eta)), "3", "+"),
    "MixtureOfDiagNormals": at(dist.MixtureOfDiagNormals, "5x2", "3x2", "+3x2", "3"),
    "MixtureOfDiagNormalsSharedCovariance": at(dist.MixtureOfDiagNormalsSharedCovariance, "5x2", "3x2", "+2", "3"),
    "VonMises3D": (lambda c, x: dist.VonMises3D(c).log_prob(unit(x)), "3", "5x3"),
    "ProjectedNormal": (lambda c, x: dist.ProjectedNormal(c).log_prob(unit(x)), "3", "5x3"),
    "DiscreteHMM": at(lambda i, t, m, s: dist.DiscreteHMM(i, t, dist.Normal(m, s)), "7", "3", "3x3", "3", "+3"),
}
# Written out over time by Pyro, so that the compiler needs some seconds.
SERIES = {
    "GaussianHMM": at(gaussian_hmm, "4x3", "2x2", "2x3", "+2"),
    "GammaGaussianHMM": at(
        lambda F, H: dist.GammaGaussianHMM(
            dist.Gamma(tensor(2.0)[0], tensor(2.0)[0]),
            *(dist.MultivariateNormal(torch.zeros(2), torch.eye(2)), F),
            *(dist.MultivariateNormal(torch.zeros(2), torch.eye(2)), H),
            dist.MultivariateNormal(torch.zeros(3), torch.eye(3)),
        ),
        *("4x3", "2x2", "2x3"),
    ),
    "IndependentHMM": at(
        lambda F, H: dist.IndependentHMM(
            dist.GaussianHMM(
                *(dist.Normal(torch.zeros(3, 2), 1.0).to_event(1), F, standard(2), H, standard(1)), duration=4
            )
        ),
        *("4x3", "2x2", "2x1"),
    ),
    "GaussianMRF": at(
        lambda s: dist.GaussianMRF(
            *(dist.MultivariateNormal(torch.zeros(n), spd(s)[:n, :n]) for n in (2, 4)),
            dist.MultivariateNormal(torch.zeros(5), spd(s)),
        ),
        *("4x3", "5x5"),
    ),
}
GROUPS = {"continuous": CONTINUOUS, "discrete": DISCRETE, "multivariate": MULTIVARIATE, "series": SERIES}

# Why there is no row above for the others.
OTHERS = {
    "bases of others": "Distribution ExponentialFamily TorchDistribution Rejector",
    "densities of others": "LKJCorrCholesky OneHotCategoricalStraightThrough RelaxedBernoulliStraightThrough "
    "RelaxedOneHotCategoricalStraightThrough",
    "Python reads the values of parameters": "Stable StableWithLogProb SineSkewed SineBivariateVonMises",
    "no density in Pyro": "LinearHMM",
    "no gradient in Pyro": "GaussianScaleMixture",
    "an operation without native code": "Wishart",
}


@pytest.fixture(autouse=True)
def own_state():
    with isolated(seed=1), pyro.validation_enabled(False):
        yield


class Densities:
    """Log densities of a group, as functions of one vector of all their parameters, compiled together."""

    def __init__(self, cases):
        self.cases, self.generator = cases, torch.Generator().manual_seed(0)
        self.shapes = {
            name: [argument(spec, self.generator, torch.float64).shape for spec in specs]
            for name, (_, *specs) in cases.items()
        }
        point = self.draw()
        # two graphs, as one function that takes its own gradient cannot be recorded where it writes in place
        self.values = compile_graph(record(lambda x: tuple(self.each(x)), point), point)
        self.gradient = compile_graph(Recording(self.total, [point], gradient=True).bind(), point)

    def draw(self):
        specs = [spec for _, *specs in self.cases.values() for spec in specs]
        return torch.cat([argument(spec, self.generator, torch.float64).reshape(-1) for spec in specs])

    def each(self, vector):
        """Give the log densities of every case."""
        results = []
        for name, (function, *_) in self.cases.items():
            arguments = []
            for shape in self.shapes[name]:
                own, vector = vector[: shape.numel()], vector[shape.numel() :]
                arguments.append(own.view(shape))
            results.append(function(*arguments))
        return results

    def total(self, vector):
        return sum(((i % 5 + 1) * value).sum() for i, value in enumerate(self.each(vector)))


@pytest.mark.parametrize(
    "group", ["continuous", "discrete", "multivariate", pytest.param("series", marks=pytest.mark.slow)]
)
def test_log_densities_and_gradients_equal_torchs(group):
    densities = Densities(GROUPS[group])
    for _ in range(4):
        point = densities.draw().requires_grad_()
        told = {
            name: difference(got, expected.numpy(force=True), 1e-10)
            for name, got, expected in zip(
                densities.cases, densities.values(point.detach()), densities.each(point), strict=True
            )
        }
        assert {name: said for name, said in told.items() if said} == {}
        (expected,) = torch.autograd.grad(densities.total(point), point)
        gradient, _ = densities.gradient(point.detach())
        np.testing.assert_allclose(gradient, expected, rtol=1e-8, atol=1e-9)


def test_every_distribution_of_pyro_is_here():
    classes = {
        name
        for name in dir(dist)
        if isinstance(getattr(dist, name), type) and issubclass(getattr(dist, name), torch.distributions.Distribution)
    }
    tested = {name.split()[0] for group in GROUPS.values() for name in group}
    left_out = {name for names in OTHERS.values() for name in names.split()}
    assert classes - tested - left_out == set()
    assert tested & left_out == set()


def test_one_that_needs_an_operation_without_native_code():
    def wishart(x):
        return dist.Wishart(tensor(5.0)[0], scale_tril=torch.eye(3)).log_prob(spd(x))

    x = torch.randn(3, 3)
    with pytest.raises(Unsupported, match="the operation aten._linalg_slogdet"):
        compile_graph(record(wishart, x), x)
