"""`moeracle.properties.cases.case`, where this was; kept for one release."""

from .cases.case import *  # noqa: F403
