"""`moeracle.ref.weights.weight`, where this was; kept for one release."""

from .weights.weight import *  # noqa: F403
