"""The public names of `deepfake_nb.networks.weights`, by a short path."""

from .networks.weights import *  # noqa: F403
from .networks.weights import __all__  # noqa: F401
