"""The public names of `deepfake_nb.media.faces`, by a short path."""

from .media.faces import *  # noqa: F403
from .media.faces import __all__  # noqa: F401
