"""The public names of `deepfake_nb.scoring.score`, by a short path."""

from .scoring.score import *  # noqa: F403
from .scoring.score import __all__  # noqa: F401
