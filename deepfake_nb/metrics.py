"""The public names of `deepfake_nb.evaluation.metrics`, by a short path."""

from .evaluation.metrics import *  # noqa: F403
from .evaluation.metrics import __all__  # noqa: F401
