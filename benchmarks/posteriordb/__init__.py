"""Reference posteriors, ported to Pyro: `PORTS`, by the name of the posterior.

A port is a Pyro function whose arguments are named like the data; its sites are named like those of the reference. It
never sees the reference.
"""

from collections.abc import Callable

from benchmarks.posteriordb import (
    gaussian_process,
    hierarchical,
    hmm,
    mixture,
    multimodal,
    ode,
    regression,
    time_series,
)

PORTS: dict[str, Callable[..., None]] = {
    "eight_schools-eight_schools_centered": hierarchical.eight_schools_centered,
    "eight_schools-eight_schools_noncentered": hierarchical.eight_schools_noncentered,
    "radon_contextual_effects_minnesota_halfnormal": hierarchical.radon_contextual_effects,
    "low_dim_gauss_mix-low_dim_gauss_mix": mixture.low_dim_gauss_mix,
    "low_dim_gauss_mix_collapse-low_dim_gauss_mix_collapse": mixture.low_dim_gauss_mix_collapse,
    "M0_data-M0_model": mixture.capture_recapture,
    "hmm_example-hmm_example": hmm.hmm_example,
    "bball_drive_event_0-hmm_drive_0": hmm.hmm_drive_0,
    "garch-garch11": time_series.garch11,
    "arK-arK": time_series.ar_k,
    "gp_pois_regr-gp_pois_regr": gaussian_process.gp_poisson,
    "hudson_lynx_hare-lotka_volterra": ode.lotka_volterra,
    "sblrc-blr": regression.blr,
    "diamonds-diamonds": regression.diamonds,
    "nes2000-nes": regression.nes,
    "earnings-logearn_interaction": regression.logearn_interaction,
    "earnings-earn_height": regression.earn_height,
    "kidiq-kidscore_interaction": regression.kidscore_interaction,
    "kidiq_with_mom_work-kidscore_mom_work": regression.kidscore_mom_work,
    "mesquite-logmesquite_logvas": regression.logmesquite_logvas,
    "kilpisjarvi_mod-kilpisjarvi": regression.kilpisjarvi,
    "wells_data-wells_dist100ars_model": regression.wells,
    "dogs-dogs_v2020": regression.dogs,
    "dogs-dogs_hierarchical": regression.dogs_multiplicative,
    "sbibm-slcp_obs2": multimodal.slcp,
}

# What no gradient-based sampler passes at its default settings, and why: `check` must not call such a fit healthy.
BEYOND_NUTS: dict[str, str] = {
    "eight_schools-eight_schools_centered": "a funnel whose neck needs shorter steps than the rest",
    "low_dim_gauss_mix_collapse-low_dim_gauss_mix_collapse": "two equal modes, labels exchanged; a chain stays in one",
    "sbibm-slcp_obs2": "four equal modes; a chain stays in one",
}
