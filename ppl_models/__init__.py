"""Generative stories: every model with data, a simulator and, where it has them, exact answers.

`MODELS` maps a name to its `Model`; it is the only registry. Nothing here knows how a posterior is found.
"""

from ppl_models.conjugate import BAYESIAN_LINEAR_REGRESSION, BETA_BINOMIAL, NORMAL_MEAN
from ppl_models.deep_markov import DEEP_MARKOV
from ppl_models.factor_loadings import BAYESIAN_FACTOR_ANALYSIS
from ppl_models.hierarchical import EIGHT_SCHOOLS, EIGHT_SCHOOLS_CENTERED
from ppl_models.hmm import (
    AUTOREGRESSIVE_HMM,
    BERNOULLI_HMM,
    CATEGORICAL_HMM,
    GAUSSIAN_HMM,
    GAUSSIAN_HMM_DIAGONAL,
    GAUSSIAN_HMM_FULL,
    POISSON_HMM,
)
from ppl_models.hmm_structured import (
    FACTORIAL_HMM,
    LEFT_TO_RIGHT_HMM,
    REGRESSION_HMM,
    STICKY_HMM,
    TRANSITION_COVARIATE_HMM,
)
from ppl_models.linear_latent import FACTOR_ANALYSIS, PROBABILISTIC_PCA
from ppl_models.mixture import GAUSSIAN_MIXTURE, GAUSSIAN_MIXTURE_EXCHANGEABLE
from ppl_models.mixture_counts import BERNOULLI_MIXTURE, MULTINOMIAL_MIXTURE, POISSON_MIXTURE
from ppl_models.mixture_regression import REGRESSION_MIXTURE
from ppl_models.mixture_sizes import DIRICHLET_PROCESS_MIXTURE, SPARSE_MIXTURE
from ppl_models.mixture_student import STUDENT_MIXTURE
from ppl_models.model import Exact, Model, Simulation
from ppl_models.regression import (
    INTERACTION_REGRESSION,
    LINEAR_REGRESSION,
    LOGISTIC_REGRESSION,
    POISSON_REGRESSION,
)
from ppl_models.state_space import LOCAL_LEVEL, LOCAL_LINEAR_TREND, STOCHASTIC_VOLATILITY
from ppl_models.vae import VAE
from ppl_models.vae_conditional import CONDITIONAL_VAE
from ppl_models.vae_semi_supervised import SEMI_SUPERVISED_VAE
from ppl_models.vae_two_layer import TWO_LAYER_VAE

__all__ = ["MODELS", "Exact", "Model", "Simulation"]

MODELS: dict[str, Model] = {
    model.name: model
    for model in (
        NORMAL_MEAN,
        BETA_BINOMIAL,
        BAYESIAN_LINEAR_REGRESSION,
        EIGHT_SCHOOLS,
        EIGHT_SCHOOLS_CENTERED,
        LINEAR_REGRESSION,
        INTERACTION_REGRESSION,
        LOGISTIC_REGRESSION,
        POISSON_REGRESSION,
        GAUSSIAN_MIXTURE,
        GAUSSIAN_MIXTURE_EXCHANGEABLE,
        STUDENT_MIXTURE,
        BERNOULLI_MIXTURE,
        POISSON_MIXTURE,
        MULTINOMIAL_MIXTURE,
        SPARSE_MIXTURE,
        DIRICHLET_PROCESS_MIXTURE,
        REGRESSION_MIXTURE,
        GAUSSIAN_HMM,
        GAUSSIAN_HMM_DIAGONAL,
        GAUSSIAN_HMM_FULL,
        POISSON_HMM,
        CATEGORICAL_HMM,
        BERNOULLI_HMM,
        AUTOREGRESSIVE_HMM,
        STICKY_HMM,
        LEFT_TO_RIGHT_HMM,
        TRANSITION_COVARIATE_HMM,
        REGRESSION_HMM,
        FACTORIAL_HMM,
        LOCAL_LEVEL,
        LOCAL_LINEAR_TREND,
        STOCHASTIC_VOLATILITY,
        VAE,
        CONDITIONAL_VAE,
        SEMI_SUPERVISED_VAE,
        TWO_LAYER_VAE,
        PROBABILISTIC_PCA,
        FACTOR_ANALYSIS,
        BAYESIAN_FACTOR_ANALYSIS,
        DEEP_MARKOV,
    )
}
