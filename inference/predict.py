"""Discrete sites of a fit at its data or at new data: probabilities, most probable values, and their errors."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import torch

from inference.batch_means import BatchMeans, batch_ids
from inference.conditional import MAX_DRAWN, as_tensors, draw_discrete, stream_chains
from inference.enumerated import (
    Factors,
    factors,
    is_separate,
    most_probable,
    packed_terms,
    posterior_log_probabilities,
)
from inference.errors import InputError
from inference.fit import Fit
from inference.hidden_markov import Chains
from inference.mapped import stream_draws
from inference.new_data import latent_draws, sites_at
from inference.nuts import check_count
from inference.prediction import Prediction, SitePrediction
from inference.relabel import with_aligned_labels
from inference.sites import Site, Sites

Values = Mapping[str, torch.Tensor]


def predict(
    fit: Fit, new_data: Mapping[str, Any] | None = None, *, num_draws: int | None = None, align_labels: bool = True
) -> Prediction:
    """Average the exact probabilities of every discrete site over the draws of a fit.

    Discrete sites are those that the density sums out (assignments, changepoints) and the states of hidden Markov
    chains. Their probabilities given the data and one draw are computed, not sampled (responsibilities, smoothed state
    probabilities), so that the only error is that of averaging over draws. The draws are taken as they are: new data do
    not change them, and they are not reweighted. Nothing but sums is held, whatever the number of draws.

    Where components are exchangeable, labels may switch between draws, and an average over them would mean nothing: the
    draws are then relabelled first (`inference.relabel`), and ``labels`` of the result says so.

    Parameters
    ----------
    fit
        From any engine.
    new_data
        Every array of the data anew, of any number of rows, sequences or steps: unseen rows get the probabilities that
        they would have beside the old ones. Numbers and other settings (``K``) keep their values unless they are given.
        By default the data of the fit.
    num_draws
        Average so many draws of each chain, evenly spread; by default all of them.
    align_labels
        Relabel where components are exchangeable.

    Returns
    -------
    Prediction
        By site; ``to_dataframe()`` gives a table with a row per element.

    Raises
    ------
    InputError
        The model has no discrete site; data that are missing, empty, not finite or not of the kind of the fit's; a
        continuous site whose draws cannot be carried over (its shape changes, or it belongs to the old rows); data that
        a draw holds impossible.

    Notes
    -----
    Viterbi's path at one parameter value is the path of highest log probability; the path given here, ``joint``, has
    the highest mean log probability over the draws. That is Viterbi's algorithm at the mean logits, does not depend on
    how the parameters are written, and never takes a step that is impossible under a draw.

    Examples
    --------
    >>> predict(fit).to_dataframe()
    >>> predict(fit, {"x": new_x})["assignment"].probabilities
    """
    fit, labels = with_aligned_labels(fit) if align_labels else (fit, "")
    with fit.restored() as own:
        sites = sites_at(fit, own, new_data)
        if not sites.discrete and not sites.chains:
            raise InputError("model: has no discrete site and no hidden Markov chain, so there is nothing to predict.")
        draws, shape = latent_draws(fit, sites, num_draws)
        ids = batch_ids(*shape, independent=fit.independent)
        coords = _coords(fit, sites)
        found = _assignments(sites, as_tensors(draws), ids, coords) if sites.discrete else {}
        for observed in sites.chains:
            states = _states(sites, as_tensors(draws), ids, observed, coords)
            found[states.name] = states
    return Prediction(found, len(ids), labels)


def forecast(fit: Fit, num_steps: int, *, num_draws: int | None = None) -> Prediction:
    """Average the state probabilities of hidden Markov chains over the steps that follow the data.

    The filtered probabilities of the last step are moved on by the transition matrix, for every draw. Where shorter
    sequences are masked to a common length, "the last step" is the common one: probabilities of the masked steps, which
    are forecasts already, are in `predict`.

    Parameters
    ----------
    fit
        From any engine.
    num_steps
        How many steps.
    num_draws
        As in `predict`.

    Raises
    ------
    InputError
        No hidden Markov chain, or one whose transitions differ from step to step, so that those to come are unknown.
    """
    check_count("num_steps", num_steps, least=1)
    fit, said = with_aligned_labels(fit)
    with fit.restored() as own:
        sites = sites_at(fit, own, None)
        if not sites.chains:
            raise InputError("model: has no hidden Markov chain, so there are no states to forecast.")
        draws, shape = latent_draws(fit, sites, num_draws)
        ids = batch_ids(*shape, independent=fit.independent)
        coords = {d: labels for d, labels in _coords(fit, sites).items() if d != "time"}
        result = {}
        for observed, path in sites.chains.items():
            mean = BatchMeans(ids)
            for chains in stream_chains(sites, as_tensors(draws), observed):
                mean.add(_moved_on(chains, num_steps, observed))
            first = path.shape[-1]
            labels = {**coords, "time": list(range(first, first + num_steps))}
            result[path.name] = _site(path, labels, np.arange(mean.mean.shape[-1]), mean)
    return Prediction(result, len(ids), said)


def _moved_on(chains: Chains, num_steps: int, observed: str) -> np.ndarray:
    """State probabilities of the steps after the last one, (*batch, num_steps, K)."""
    if len(chains.transition) != 1 and chains.num_steps > 1:
        raise InputError(
            f"site '{observed}': its transitions differ from step to step, so those to come are unknown; give the data "
            "steps without observation (masked), with which predict(fit, new_data) gives their states."
        )
    current, matrix = chains.last_filtered, np.exp(chains.transition[0])
    steps = []
    for _ in range(num_steps):
        current = np.einsum("ib,ijb->jb", current, matrix)
        steps.append(current.T.reshape(*chains.batch, -1))
    return np.stack(steps, -2)


def _coords(fit: Fit, sites: Sites) -> dict[str, list]:
    """Labels of the model's dims at the data in question, where they have the right number."""
    own = getattr(fit.model, "coords", None)
    labels = {d: list(values) for d, values in own(sites.data).items()} if callable(own) else {}
    lengths: dict[str, set[int]] = {}
    for site in [*sites.discrete.values(), *sites.chains.values()]:
        for d, n in zip(site.dims, site.shape, strict=True):
            lengths.setdefault(d, set()).add(n)
    return {d: values for d, values in labels.items() if lengths.get(d) == {len(values)}}


def _site(path: Site, coords: Mapping[str, list], values: np.ndarray, mean: BatchMeans, **more: Any) -> SitePrediction:
    dims = path.dims[: mean.mean.ndim - 1]
    own = {d: coords[d] for d in dims if d in coords}
    return SitePrediction(path.name, dims, own, values, mean.mean, mean.error, **more)


def _assignments(sites: Sites, values: Values, ids: np.ndarray, coords: Mapping[str, list]) -> dict[str, Any]:
    with torch.no_grad():
        probe = factors(sites, {name: value[0] for name, value in values.items()})
    coupled = {str(i): group for i, group in enumerate(probe.groups) if _is_coupled(probe, group)}
    names = [name for group in probe.groups for name in probe.discrete(group)]
    means = {name: BatchMeans(ids) for name in names}
    logs: dict[str, Any] = dict.fromkeys(names, 0.0)
    terms: dict[str, Any] = {}
    for part in stream_draws(_probabilities(sites, names, coupled), dict(values)):
        for key, value in part.items():
            if key.startswith(_TERM):
                terms[key] = terms.get(key, 0.0) + value.sum(0)
                continue
            _check_possible(key, value)
            means[key].add(np.exp(value))
            logs[key] = logs[key] + value.sum(0)
    joint = {name: log.argmax(-1) for name, log in logs.items()}
    for i, group in coupled.items():
        joint |= most_probable(probe, group, {name: terms[f"{_TERM}{i}/{name}"] for name in group})
    return {
        name: _site(sites.discrete[name], coords, probe.support(name).numpy(), means[name], joint=joint[name])
        for name in sites.discrete
        if name in means
    }


_TERM = "factor of group "


def _is_coupled(found: Factors, group: list[str]) -> bool:
    return bool(found.discrete(group)) and not is_separate(found, group)


def _probabilities(sites: Sites, names: list[str], coupled: Mapping[str, list[str]]) -> Callable[[Values], Values]:
    def one(values: Values) -> Values:
        found = factors(sites, values)
        result = posterior_log_probabilities(found, names)
        for i, group in coupled.items():
            result |= {f"{_TERM}{i}/{name}": term for name, term in packed_terms(found, group).items()}
        return result

    return one


def _states(sites: Sites, values: Values, ids: np.ndarray, observed: str, coords: Mapping[str, list]) -> SitePrediction:
    path = sites.chains[observed]
    smoothed, filtered = BatchMeans(ids), BatchMeans(ids)
    total: list[Any] = [0.0, 0.0, 0.0]
    for chains in _chains(sites, values, observed):
        part = chains.smoothed
        _check_possible(path.name, part)
        smoothed.add(part)
        filtered.add(chains.filtered)
        for i, logits in enumerate((chains.initial, chains.transition, chains.observation)):
            total[i] = total[i] + logits.reshape(*logits.shape[:-1], chains.batch[0], -1).sum(-2)
    mean = Chains(*[logits / len(ids) for logits in total], path.shape[:-1])
    states = np.arange(len(mean.initial))
    return _site(path, coords, states, smoothed, joint=mean.most_probable, filtered=filtered.mean)


def _chains(sites: Sites, values: Values, observed: str) -> Iterator[Chains]:
    """Chains given the draws, and given draws of the discrete sites that the chain may depend on."""
    num = len(next(iter(values.values())))
    for name, site in sites.discrete.items():
        if num * int(np.prod(site.shape)) > MAX_DRAWN:
            raise InputError(
                f"site '{name}': its draws, on which the states of '{observed}' may depend, would be more than "
                f"{MAX_DRAWN} numbers; choose a smaller num_draws."
            )
    drawn = draw_discrete(sites, values, list(sites.discrete))
    return stream_chains(sites, {**values, **as_tensors(drawn)}, observed)


def _check_possible(name: str, values: np.ndarray) -> None:
    bad = np.isnan(values)
    if bad.any():
        where = tuple(int(i) for i in np.argwhere(bad)[0][1:-1])
        raise InputError(
            f"site '{name}': under some draws the data have probability zero, first at element {where}; check them "
            "for values that the model holds impossible."
        )
