"""TARGETs: what a user names, and the kernels that it holds. Names of `load` are found here for one release."""

from .load import *  # noqa: F403
