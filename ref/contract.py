"""`moeracle.ref.contracts.contract`, where this was; kept for one release."""

from .contracts.contract import *  # noqa: F403
