"""`moeracle.properties.cases.fields`, where this was; kept for one release."""

from .cases.fields import *  # noqa: F403
