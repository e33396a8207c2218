"""Kernels with one thing wrong, around a right one."""

from moeracle.properties.cases.case import Case
from moeracle.properties.trial.trial import run_trial

from .simulate import Simulated

LINEAR = Case.parse("int4_linear/T6-N16-K32-G16/bf16/exllama-sym/-/normal/s1")
LAYER = Case.parse("moe_w4a16/T6-E3-k2-H32-I48-G16/bf16/exllama-sym/uniform/normal/s3")


class Kernel(Simulated):
    """A kernel of one function, which is called with the right answer and the arguments."""

    def __init__(self, case, broken, rules="grouped", stages=None):
        super().__init__(case.op, rules, stages=stages)
        self.broken, self.calls = broken, 0

    def fn(self, *args):
        self.calls += 1
        return self.broken(Simulated(self.op, self.rules, stages=self.stages).fn(*args), args, self.calls)


def trial(broken, case=LINEAR, **options):
    return run_trial(Kernel(case, broken, **options), case)


def raises(right, args, call):
    raise ValueError("K must be\n  a multiple of 64")
