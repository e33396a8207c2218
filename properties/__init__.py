"""How trouble is found: cases, data, judge, laws, suite.

Importing this package registers the record of every op (`ops/`), which all of its modules ask.
"""

from . import ops as ops
