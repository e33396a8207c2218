"""Running a user's kernels in processes of their own: the judge imports nothing of theirs and judges bytes.

`nursery` is a clean process that forks one child for each kernel; `serve` is what such a child does; `client` starts,
asks and ends them; `remote` makes kernel records of what they declare; `confine` takes from a child what it does not
need; `wire` is the form in which tensors cross.
"""
