"""known_failures.toml: failures that a repository knows, each with a reason, an issue and the day on which it ends.

    [[failure]]
    kernel = "moe_w4a16.my_layer"            # op.kernel
    reason = "split-K through 16-bit atomics"
    issue = "https://github.com/me/kernels/issues/7"
    expires = 2027-03-31
    tier = "determinism"                     # optional: any other tier is a new failure
    quarantine = false                       # optional: true: the kernel is not run at all

A kernel that no longer fails, and an entry past its day, are wrong: an entry must not outlive its bug.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

from moeracle.files import STRICT, parse_json, read_bytes
from moeracle.properties.cases.kernel_like import KernelLike
from moeracle.ref.errors import require

WHAT = "known failures"


@dataclass(frozen=True)
class KnownFailure:
    """One entry of the file.

    Args:
        kernel: "op.kernel".
        reason: why it fails.
        issue: a link.
        expires: the last day on which the entry holds.
        tier: the check that fails, or None: any.
        quarantine: the kernel is not run at all, because it crashes or hangs.
    """

    kernel: str
    reason: str
    issue: str
    expires: date
    tier: str | None = None
    quarantine: bool = False

    __pydantic_config__ = STRICT

    def __post_init__(self) -> None:
        op, _, name = self.kernel.partition(".")
        require(bool(op and name), f"{WHAT}: kernel: got {self.kernel!r}, must be OP.KERNEL, as moe_w4a16.my_layer")
        require(bool(self.reason.strip()), f"{WHAT}: {self.kernel}: reason: got an empty text, must say why it fails")
        is_link = self.issue.startswith(("https://", "http://"))
        require(is_link, f"{WHAT}: {self.kernel}: issue: got {self.issue!r}, must be a link")

    @property
    def quarantine_words(self) -> str:
        """Why a kernel in quarantine is not run."""
        return f"in quarantine until {self.expires}: {self.reason}"

    def expired(self, today: date | None = None) -> bool:
        """Say whether its last day is over; today is this machine's day unless it is given."""
        return (today or date.today()) > self.expires


@dataclass(frozen=True)
class _File:
    failure: list[KnownFailure]

    __pydantic_config__ = STRICT


def read_known_failures(path: Path | None) -> list[KnownFailure]:
    """Read the file; None gives no entries.

    Raises:
        ValueError: in one line: no such file, no TOML, a field that is missing or wrong, or a kernel named twice.
    """
    if path is None:
        return []
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib
    where = f"{WHAT}: {path}"
    try:
        values: dict[str, Any] = tomllib.loads(read_bytes(path, WHAT, most=1 << 20).decode())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{where} is not TOML ({' '.join(str(error).split())[:200]})") from None
    except RecursionError:
        raise ValueError(f"{where} is not TOML (nested too deep)") from None
    text = json.dumps({"failure": [], **values}, default=str)  # a date as ISO 8601 has it
    entries = parse_json(text.encode(), _File, where).failure
    names = [entry.kernel for entry in entries]
    twice = next((name for name in names if names.count(name) > 1), None)
    require(twice is None, f"{where} names {twice} twice, must name a kernel once")
    return entries


@dataclass(frozen=True)
class Settled:
    """What the entries say of one kernel's result.

    Args:
        entry: the kernel's entry.
        wrong: why the result is no known failure, or "": it is one.
    """

    entry: KnownFailure
    wrong: str = ""

    @property
    def text(self) -> str:
        """One line for whoever reads the run."""
        if self.wrong:
            return f"{self.entry.kernel}: {self.wrong}"
        how = "not run" if self.entry.quarantine else "fails"
        return f"{self.entry.kernel} {how}, known until {self.entry.expires}: {self.entry.reason} ({self.entry.issue})"

    def as_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        said = {"reason": self.entry.reason, "issue": self.entry.issue, "expires": self.entry.expires.isoformat()}
        return {**said, "quarantine": self.entry.quarantine, "wrong": self.wrong}


def settle(entry: KnownFailure, tiers: Sequence[str], *, run: bool = True, today: date | None = None) -> Settled:
    """Hold a kernel's result against its entry.

    Args:
        entry: the kernel's.
        tiers: the checks that it failed; none if it failed none.
        run: whether it was run; false for one in quarantine.
        today: the day, or None: this machine's.
    Returns:
        Settled; its `wrong` is "" only for a failure as the entry describes it, on a day before it expires.
    """
    if entry.expired(today):
        return Settled(entry, f"its entry expired on {entry.expires} ({entry.issue})")
    if not run:
        return Settled(entry)
    if not tiers:
        return Settled(entry, f"it fails no more: remove its entry ({entry.issue})")
    new = [tier for tier in tiers if entry.tier is not None and tier != entry.tier]
    if new:
        return Settled(entry, f"it fails with tier={new[0]}, and its entry knows tier={entry.tier} only")
    return Settled(entry)


def of_nobody(entries: Iterable[KnownFailure], kernels: Iterable[KernelLike]) -> list[Settled]:
    """Return what is wrong with the entries of kernels that are not there: some are past their day.

    Args:
        entries: the file's.
        kernels: all that there are.
    """
    there = {f"{kernel.op}.{kernel.name}" for kernel in kernels}
    settled = [settle(entry, (), run=False) for entry in entries if entry.kernel not in there]
    return [Settled(one.entry, f"{one.wrong}, and no kernel is called so") for one in settled if one.wrong]


def of_kernel(entries: Iterable[KnownFailure], op: str, kernel: str) -> KnownFailure | None:
    """Return a kernel's entry, or None."""
    return next((entry for entry in entries if entry.kernel == f"{op}.{kernel}"), None)
