"""Posteriors of Pyro models by variational inference and by NUTS, and a verdict on whether to trust them."""

__version__ = "0.1.0"

from inference.amortisation import Amortisation, amortisation
from inference.autovi import AutoVI
from inference.bracket import Bracket, bracket
from inference.clusterings import Clusterings, clusterings
from inference.compare import Comparison, compare
from inference.compare_models import ModelComparison, compare_models
from inference.errors import InputError
from inference.evidence import Evidence, log_evidence
from inference.fit import Engine, Fit, Problem, Run, Status, fit
from inference.forward_kl import train_guide
from inference.given import from_draws
from inference.impute import Imputation, impute
from inference.isolation import isolated
from inference.laplace import MAP, Laplace
from inference.latent_usage import LatentUsage, latent_usage
from inference.latent_view import LatentView, latent_view
from inference.nuts import NUTS
from inference.predict import forecast, predict
from inference.prediction import Prediction
from inference.relabel import Relabelled, relabel, relabel_jointly
from inference.row_likelihood import RowLikelihood, log_marginal
from inference.scores import PredictiveScore, log_predictive, step_log_densities
from inference.storage import load_fit
from inference.svi import SVI
from inference.verdict import Verdict, check

__all__ = [
    "MAP",
    "NUTS",
    "SVI",
    "Amortisation",
    "AutoVI",
    "Bracket",
    "Clusterings",
    "Comparison",
    "Engine",
    "Evidence",
    "Fit",
    "Imputation",
    "InputError",
    "Laplace",
    "LatentUsage",
    "LatentView",
    "ModelComparison",
    "Prediction",
    "PredictiveScore",
    "Problem",
    "Relabelled",
    "RowLikelihood",
    "Run",
    "Status",
    "Verdict",
    "amortisation",
    "bracket",
    "check",
    "clusterings",
    "compare",
    "compare_models",
    "fit",
    "forecast",
    "from_draws",
    "impute",
    "isolated",
    "latent_usage",
    "latent_view",
    "load_fit",
    "log_evidence",
    "log_marginal",
    "log_predictive",
    "predict",
    "relabel",
    "relabel_jointly",
    "step_log_densities",
    "train_guide",
]
