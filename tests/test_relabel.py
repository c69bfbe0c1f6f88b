"""Labels of real fits: aligned to one another, the same whatever the labels were, and no cover for wrong fits."""

from dataclasses import replace

import numpy as np
import pytest
from scipy import integrate, stats

from inference import (
    NUTS,
    AutoVI,
    InputError,
    Laplace,
    check,
    compare,
    fit,
    from_draws,
    log_evidence,
    predict,
    relabel,
    relabel_jointly,
)
from inference.diagnostics import moments
from inference.exchangeable import exchangeable
from inference.label_view import label_free
from inference.modes import search_modes
from inference.restored_density import restored_density
from inference.starts import climb_to_maximum, mode_at
from inference.verdict_kinds import VerdictKind
from ppl_models import MODELS
from tests.test_exchangeable import hmm, mixture, schools

EXCHANGEABLE, ORDERED = MODELS["gaussian_mixture_exchangeable"].model, MODELS["gaussian_mixture"]
RNG = np.random.default_rng(0)
DATA = {"x": np.concatenate([RNG.normal(m, s, n) for m, s, n in [(1, 0.4, 20), (4, 0.5, 25), (7, 0.6, 30)]]), "K": 3}
SHORT = NUTS(num_warmup=300, num_samples=1500)


@pytest.fixture(scope="module")
def nuts():
    return fit(EXCHANGEABLE, DATA, SHORT, seed=1)


@pytest.fixture(scope="module")
def auto():
    return fit(EXCHANGEABLE, DATA, AutoVI(), seed=1)


def with_labels_permuted(result, *, seed=3):
    """The same fit with the labels of every draw permuted at random."""
    rng = np.random.default_rng(seed)
    with restored_density(result, num_gradients=0) as (density, sites):
        draws = {name: value.reshape(-1, *value.shape[2:]) for name, value in result.draws.items()}
        num = len(next(iter(draws.values())))
        for group in exchangeable(density):
            draws = group.permuted(draws, np.stack([rng.permutation(group.size) for _ in range(num)]))
        points = density.unconstrain({name: draws[name] for name in sites.latent})[0]
    shape = result.num_chains, result.num_draws
    state = {**result.state, "unconstrained": points.reshape(*shape, -1)}
    return replace(result, draws={n: v.reshape(*shape, *v.shape[1:]) for n, v in draws.items()}, state=state)


# --- Relabelling ------------------------------------------------------------------------------------------------------


def test_aligned_draws_are_those_of_the_ordered_model(nuts):
    aligned = relabel(nuts)
    ordered = fit(ORDERED, DATA, SHORT, seed=2)
    assert aligned.by == {"component": "responsibilities"}
    assert aligned.agreement > 0.99
    assert aligned.rhat_before > 1.5
    assert aligned.rhat_after < 1.02
    assert "aligned by responsibilities" in str(aligned)
    for name in ("weights", "loc", "scale"):
        one, other = (moments(some.draws[name], independent=False) for some in (aligned.fit, ordered))
        se = np.hypot(one.mean_se, other.mean_se)
        assert (np.abs(one.mean - other.mean) < 4.5 * se).all()
        assert (np.abs(np.log(one.sd / other.sd)) < 4.5 * np.hypot(one.log_sd_se, other.log_sd_se)).all()
    assert not (np.abs(moments(nuts.draws["loc"], independent=False).mean - one.mean) < 0.5).all()


def test_all_parts_of_an_aligned_fit_belong_together(nuts):
    aligned = relabel(nuts).fit
    with restored_density(aligned, num_gradients=0) as (density, _):
        points = aligned.state["unconstrained"].reshape(-1, density.dim)
        np.testing.assert_allclose(density.log_density(points), aligned.stats["lp"].ravel(), rtol=1e-9)
        again = density.constrain(points)
    for name in ("weights", "loc", "scale"):
        np.testing.assert_allclose(again[name].reshape(aligned.draws[name].shape), aligned.draws[name], rtol=1e-6)
    for part in (nuts, aligned):  # rows are near the components that they are assigned to, before and after
        own = np.take_along_axis(part.draws["loc"], part.draws["assignment"], axis=-1)
        assert np.abs(own - DATA["x"]).mean() < 0.6
    share = (aligned.draws["assignment"] == np.repeat([0, 1, 2], [20, 25, 30])).mean()
    assert share > 0.97


def test_labels_of_the_draws_do_not_matter(nuts):
    expected, found = relabel(nuts), relabel(with_labels_permuted(nuts))
    for name in ("weights", "loc", "scale", "assignment"):
        np.testing.assert_allclose(found.fit.draws[name], expected.fit.draws[name], rtol=1e-9)
    assert found.agreement == expected.agreement


def test_permutations_are_what_was_done(nuts):
    found = relabel(nuts)
    expected = np.take_along_axis(nuts.draws["loc"], found.permutations["component"], axis=-1)
    np.testing.assert_array_equal(found.fit.draws["loc"], expected)
    assert (np.diff(found.fit.draws["loc"].mean(axis=(0, 1))) > 0).all()


def test_a_pivot_gives_the_labels(nuts):
    found = relabel(nuts, {"loc": [7.0, 1.0, 4.0]})
    np.testing.assert_allclose(found.fit.draws["loc"].mean(axis=(0, 1)), [7.0, 1.0, 4.0], atol=0.3)
    for bad in ({"loc": [7.0, 1.0]}, {"nothing": [1.0]}, {}, {"loc": [np.nan, 1.0, 2.0]}):
        with pytest.raises(InputError, match="pivot"):
            relabel(nuts, bad)


def test_fits_are_aligned_to_one_another(nuts, auto):
    found = relabel_jointly({"nuts": nuts, "auto": auto}, reference="nuts")
    one, other = (moments(found[name].fit.draws["loc"], independent=name == "auto") for name in ("nuts", "auto"))
    assert (np.abs(one.mean - other.mean) < 4.5 * np.hypot(one.mean_se, other.mean_se)).all()
    together = relabel_jointly({"nuts": nuts, "auto": auto})
    np.testing.assert_array_equal(together["nuts"].fit.draws["loc"], found["nuts"].fit.draws["loc"])


def test_states_of_a_chain_in_rows_and_columns():
    rng = np.random.default_rng(5)
    states = np.cumsum(rng.random(80) < 0.1) % 3
    result = fit(hmm, {"y": 6.0 * states + rng.normal(size=80)}, SHORT, seed=1)
    found = relabel(result)
    assert found.agreement > 0.98
    assert found.rhat_after < 1.05 < found.rhat_before
    aligned = found.fit.draws
    np.testing.assert_allclose(aligned["loc"].mean(axis=(0, 1)), [0, 6, 12], atol=0.8)
    np.testing.assert_allclose(aligned["transition"].sum(axis=-1), 1.0, rtol=1e-9)
    np.testing.assert_array_equal(aligned["stay"], np.diagonal(aligned["transition"], axis1=-2, axis2=-1))
    assert (aligned["stay"].mean(axis=(0, 1)) > 0.5).all()
    mean = aligned["transition"].mean(axis=(0, 1))
    assert mean[0, 1] > mean[0, 2]  # states follow one another in turn
    assert mean[1, 2] > mean[1, 0]


def test_what_cannot_be_relabelled_is_refused(nuts):
    with pytest.raises(InputError, match="nothing to relabel"):
        relabel(fit(ORDERED, DATA, Laplace(), seed=1))
    with pytest.raises(InputError, match="flat log density"):
        relabel(from_draws({"loc": nuts.draws["loc"]}))
    with pytest.raises(InputError, match="lacks site"):
        relabel_jointly({"nuts": nuts, "given": from_draws({"loc": nuts.draws["loc"]})}, reference="nuts")
    with pytest.raises(InputError, match="reference"):
        relabel_jointly({"nuts": nuts}, reference="auto")


def test_quantities_without_labels_are_without_labels(nuts):
    group = relabel(nuts).components[0]

    def seen(result):
        flat = {name: value.reshape(-1, *value.shape[2:]) for name, value in result.draws.items()}
        return label_free(group, flat)

    one, other = seen(nuts), seen(with_labels_permuted(nuts))
    assert set(one) == {"sorted weights", "sorted loc", "sorted scale", "occupied by assignment"}
    for name, value in one.items():
        np.testing.assert_array_equal(value, other[name])


# --- Verdicts ---------------------------------------------------------------------------------------------------------


def test_chains_in_several_labellings_agree(nuts):
    verdict = check(nuts)
    assert verdict.kind is VerdictKind.TRUST
    assert verdict.checks["max_rhat"] < 1.02
    assert any("R-hat of the components was" in remark for remark in verdict.remarks)


def test_compare_aligns_by_itself_and_does_not_mind_labels(nuts, auto):
    found = compare({"nuts": nuts, "auto": auto})
    assert found.reference_verdict.kind is VerdictKind.TRUST
    assert found.verdicts["auto"].trusted
    assert "draws were relabelled" in found.remarks[0]
    assert "100% of the draws of 'nuts'" in found.remarks[0]
    moved = compare({"nuts": with_labels_permuted(nuts), "auto": with_labels_permuted(auto, seed=4)})
    assert moved.verdicts["auto"].kind is found.verdicts["auto"].kind
    numbers = found.table.select_dtypes("number").columns
    np.testing.assert_allclose(moved.table[numbers], found.table[numbers], rtol=1e-6, atol=1e-9)


def test_draws_of_another_program_are_aligned_too(nuts, auto):
    names = ("weights", "loc", "scale")
    given = from_draws({name: with_labels_permuted(nuts).draws[name] for name in names}, source="Stan")
    found = compare({"stan": given, "auto": auto}, reference="stan")
    assert found.verdicts["auto"].trusted
    assert "100% of the draws of 'stan'" in found.remarks[0]
    partly = compare({"stan": from_draws({"loc": given.draws["loc"]}), "auto": auto}, reference="stan")
    assert "lacks site" in partly.remarks[0]


def test_identify_wins(nuts, auto):
    model = MODELS["gaussian_mixture_exchangeable"]
    found = compare({"nuts": replace(nuts, model=model), "auto": replace(auto, model=model)})
    assert any("identify" in remark for remark in found.remarks)
    assert not any("relabelled" in remark for remark in found.remarks)


def test_labels_that_cannot_be_told_are_not_compared():
    rng = np.random.default_rng(6)
    data = {"x": rng.normal(3.5, 1.0, 120), "K": 2}
    one, other = (fit(EXCHANGEABLE, data, SHORT, seed=seed) for seed in (1, 2))
    found = compare({"nuts": one, "again": other})
    assert "cannot be aligned" in found.remarks[0]
    assert all(not label.startswith(("loc[", "weights[")) for label in found.table["quantity"])
    assert any(label.startswith("sorted loc") for label in found.table["quantity"])
    assert any(label.startswith("pairs together") for label in found.table["quantity"])


@pytest.fixture(scope="module")
def in_modes(nuts):
    """Draws of Laplace's Gaussian in the heaviest mode, and in the next one that is no copy of it."""
    num, made = nuts.num_chains * nuts.num_draws, []
    with restored_density(nuts, num_gradients=1e6) as (density, _):
        starts = density.starts(16, generator=np.random.default_rng(1))
        modes = [mode_at(density, climb_to_maximum(density, point)[0]) for point in starts]
        masses = sorted({round(mode.log_mass, 2) for mode in modes if mode}, reverse=True)
        for mass in masses[:2]:
            chosen = next(mode for mode in modes if mode and round(mode.log_mass, 2) == mass)
            points = chosen.laplace.transform(np.random.default_rng(2).standard_normal((num, density.dim)))
            made.append((points, density.constrain(points)))
    return made


def of_points(result, points, values):
    """A fit with other draws."""
    shape = result.num_chains, result.num_draws
    draws = {name: value.reshape(*shape, *value.shape[1:]) for name, value in values.items()}
    return replace(result, draws=draws, state={**result.state, "unconstrained": points.reshape(*shape, -1)})


def test_chains_in_two_different_modes_do_not_agree(nuts, in_modes):
    """Modes that are no relabelling of one another stay apart: two chains in each."""
    (good, at_good), (bad, at_bad) = in_modes
    half = len(good) // 2
    both = {name: np.concatenate([at_good[name][:half], at_bad[name][:half]]) for name in at_good}
    mixed = of_points(nuts, np.concatenate([good[:half], bad[:half]]), both)
    assert relabel(mixed).rhat_after > 1.5
    verdict = check(mixed)
    assert verdict.kind is VerdictKind.DO_NOT_TRUST
    assert verdict.checks["max_rhat"] > 1.5


@pytest.mark.parametrize(("rank", "missed"), [(0, False), (1, True)])
def test_a_fit_in_a_lesser_mode_is_not_excused_by_labels(nuts, in_modes, rank, missed):
    one = of_points(nuts, *in_modes[rank])
    assert (search_modes(one).num_elsewhere > 0) == missed
    assert (check(one).kind is VerdictKind.DO_NOT_TRUST) == missed


def test_copies_of_a_mode_are_one_mode_and_those_of_a_tilted_prior_are_two():
    data = {"y": np.concatenate([RNG.normal(-3, 1, 15), RNG.normal(3, 1, 15)]), "K": 2}
    found = search_modes(fit(mixture, data, Laplace(), seed=1))
    assert (found.num_elsewhere, found.num_settled) == (0, found.num_starts)
    assert search_modes(fit(mixture, {**data, "tilt": 0.01}, Laplace(), seed=1)).num_elsewhere > 0


def test_a_symmetric_cloud_is_left_as_it_is():
    """Rows with equal data have exchangeable effects but one mode: nothing is sorted, and no K! is added."""
    data = {"y": np.ones(6)}
    one, other = fit(schools, data, AutoVI(), seed=1), fit(schools, data, SHORT, seed=1)
    found = compare({"nuts": other, "auto": one})
    assert not found.remarks
    assert "theta[0]" in set(found.table["quantity"])
    # Rows are normal with variance 2, and correlated by their common mean with variance 1.
    truth = stats.multivariate_normal(np.zeros(6), 2 * np.eye(6) + 1).logpdf(data["y"])
    for made in (log_evidence(one, method="psis"), log_evidence(one), log_evidence(other)):
        assert abs(made.value - truth) < 4.5 * made.se + 0.02


# --- Evidence ---------------------------------------------------------------------------------------------------------


def quadrature(y, concentration):
    """Log evidence of `mixture` with two components, over both locations and the weight, by Simpson's rule."""
    grid, weight = np.linspace(-9, 9, 241), np.linspace(0, 1, 61)
    a, b, w = np.meshgrid(grid, grid, weight, indexing="ij", sparse=True)
    values = (
        stats.norm.logpdf(a, 0, 5) + stats.norm.logpdf(b, 0, 5) + stats.beta.logpdf(w, concentration, concentration)
    )
    for value in y:
        values = values + np.log(w * stats.norm.pdf(value, a, 1) + (1 - w) * stats.norm.pdf(value, b, 1))
    top = values.max()
    inner = integrate.simpson(integrate.simpson(np.exp(values - top), x=weight), x=grid)
    return top + np.log(integrate.simpson(inner, x=grid))


@pytest.mark.parametrize("gap", [1.0, 6.0], ids=["overlapping", "apart"])
def test_log_evidence_counts_every_labelling(gap):
    y = np.random.default_rng(8).normal(size=12) + gap / 2 * np.repeat([-1, 1], 6)
    data = {"y": y, "K": 2, "concentration": 2.0}
    truth = quadrature(y, 2.0)
    found = log_evidence(fit(mixture, data, NUTS(num_samples=1000), seed=1))
    assert abs(found.value - truth) < 4.5 * found.se + 0.01
    assert found.se < 0.1
    auto = fit(mixture, data, AutoVI(), seed=1)
    if gap > 3:
        assert abs(log_evidence(auto, method="psis").value - truth) < 4.5 * auto.state["elbo_se"] + 0.01
    else:
        assert abs(log_evidence(auto).value - truth) < 0.15


def test_predictions_are_made_with_aligned_labels(nuts):
    """An average over labellings would leave every row at the share of draws with each."""
    found = predict(nuts)
    assert "aligned by responsibilities" in found.labels
    assert found["assignment"].probability.min() > 0.9
    assert predict(relabel(nuts).fit).labels == ""
    raw = predict(nuts, align_labels=False)
    assert raw["assignment"].probability.max() < 0.9
    assert raw.labels == ""
