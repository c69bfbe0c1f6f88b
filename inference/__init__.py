"""Posteriors of Pyro models by variational inference and by NUTS, and a verdict on whether to trust them."""

__version__ = "0.1.0"

from inference.autovi import AutoVI
from inference.clusterings import Clusterings, clusterings
from inference.compare import Comparison, compare
from inference.compare_models import ModelComparison, compare_models
from inference.errors import InputError
from inference.evidence import Evidence, log_evidence
from inference.fit import Engine, Fit, Problem, Run, Status, fit
from inference.forward_kl import train_guide
from inference.given import from_draws
from inference.isolation import isolated
from inference.laplace import MAP, Laplace
from inference.nuts import NUTS
from inference.predict import forecast, predict
from inference.prediction import Prediction
from inference.relabel import Relabelled, relabel, relabel_jointly
from inference.scores import PredictiveScore, log_predictive, step_log_densities
from inference.storage import load_fit
from inference.svi import SVI
from inference.verdict import Verdict, check

__all__ = [
    "MAP",
    "NUTS",
    "SVI",
    "AutoVI",
    "Clusterings",
    "Comparison",
    "Engine",
    "Evidence",
    "Fit",
    "InputError",
    "Laplace",
    "ModelComparison",
    "Prediction",
    "PredictiveScore",
    "Problem",
    "Relabelled",
    "Run",
    "Status",
    "Verdict",
    "check",
    "clusterings",
    "compare",
    "compare_models",
    "fit",
    "forecast",
    "from_draws",
    "isolated",
    "load_fit",
    "log_evidence",
    "log_predictive",
    "predict",
    "relabel",
    "relabel_jointly",
    "step_log_densities",
    "train_guide",
]
