"""The ELBO estimators by name."""

from pyro.infer import ELBO, RenyiELBO, Trace_ELBO, TraceEnum_ELBO, TraceGraph_ELBO, TraceMeanField_ELBO

from inference.errors import InputError
from inference.sites import Sites

# Every estimator is a loss over (model, guide); its minimum is the negative bound.
ELBOS: dict[str, type[ELBO]] = {
    "trace": Trace_ELBO,
    "trace_mean_field": TraceMeanField_ELBO,
    "trace_enum": TraceEnum_ELBO,
    "trace_graph": TraceGraph_ELBO,
    "renyi": RenyiELBO,
}

# Renyi's bound is an average inside a logarithm: with a single particle it is the plain ELBO.
_MIN_RENYI_PARTICLES = 2


def make_elbo(elbo: str | ELBO | None, sites: Sites, *, num_particles: int, discrete_in_guide: bool) -> ELBO:
    """Give the estimator for a model; by default ``trace``, or ``trace_enum`` where discrete sites are summed out.

    Raises
    ------
    InputError
        Unknown name, or an estimator that cannot sum out the discrete sites of the model.
    """
    to_enumerate = bool(sites.discrete) and not discrete_in_guide
    if elbo is None:
        elbo = "trace_enum" if to_enumerate else "trace"
    if isinstance(elbo, str):
        if elbo not in ELBOS:
            raise InputError(f"elbo: expected one of {', '.join(ELBOS)} or a pyro.infer.ELBO object, got '{elbo}'.")
        if elbo == "renyi" and num_particles < _MIN_RENYI_PARTICLES:
            raise InputError("elbo='renyi': needs num_particles of at least 2; one particle gives the plain ELBO.")
        options = {"num_particles": num_particles, "max_plate_nesting": sites.max_plate_nesting}
        if elbo == "trace_enum":  # asked for by name it may also sum out nothing
            options["strict_enumeration_warning"] = False
        made = ELBOS[elbo](**options)
    elif isinstance(elbo, ELBO):
        made = elbo
    else:
        raise InputError(f"elbo: expected a name or a pyro.infer.ELBO object, got {type(elbo).__name__}.")
    if to_enumerate and not isinstance(made, TraceEnum_ELBO):
        raise InputError(
            f"elbo: {type(made).__name__} cannot sum out the discrete site '{next(iter(sites.discrete))}'; use "
            "elbo='trace_enum' (the default here), or a guide that samples it."
        )
    return made
