"""Loading a TARGET in a child: kernel records whose functions are that child's, or those of several that are ranks."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from moeracle.properties.cases.case import TORCH_DTYPE
from moeracle.properties.cases.optable import OPS
from moeracle.properties.common.endings import Ended
from moeracle.ref.weights.layouts import LAYOUTS, LAYOUTS8
from moeracle.target.declaration import ZEROS, Kernel, check_device
from moeracle.target.importing import source_of
from moeracle.target.load import Target, TargetError, place_of

from .client import Limits
from .ranks import Ranked
from .remote import Remote, TargetLoader
from .wire import NOT_PLAIN, contract_from

__all__ = ["Limits", "load_isolated"]


class RemoteKernel(Kernel):
    """A Kernel whose function, `supports` and `schedule` are a child's."""

    def interpreted_wrongly(self) -> bool:
        """Say whether Triton's interpreter computes bf16 wrongly in the child."""
        return bool(getattr(self.fn, "computes_wrongly", False))


def load_isolated(text: str, device: str | None = None, limits: Limits | None = None) -> Target:
    """Return the kernels of a TARGET, which is loaded in a child: nothing of it is imported here.

    Args:
        text: the TARGET.
        device: where to run them instead of where they declare, or None.
        limits: what children may use.
    Returns:
        The Target; its kernels' functions are `Remote`.
    Raises:
        TargetError: as load_target, or its import hangs or ends the process.
        ValueError: `device` is not a device's name, or no child can be started.
    """
    if device is not None:
        check_device(device)
    place_of(text)
    loader = TargetLoader(text, device, limits or Limits(), source=source_of(place_of(text)))
    try:
        loader.spare = loader.take()
    except Ended as ended:
        raise TargetError(f"TARGET {place_of(text)}: does not import: {'; '.join(ended.lines[:2])}") from None
    try:
        kernels = [_kernel(loader, at, said) for at, said in enumerate(loader.declared or ())]
    except TargetError:
        raise
    except Exception as error:  # whatever it said in place of what it declares
        raise TargetError(f"TARGET {place_of(text)}: its process declares no kernel ({error})") from None
    return Target(text, tuple(kernels))


def _kernel(loader: TargetLoader, at: int, said: dict[str, Any]) -> RemoteKernel:
    check_device(said["device"])
    rules = contract_from(said["contract"])
    fn: Remote = Remote(loader, at, said)
    if said["world_size"] != 1:
        count = None if rules.ranks is None else rules.ranks.count
        if said["world_size"] != count or rules.ranks is None:
            raise TargetError(f"TARGET {place_of(loader.target)}: declares a number of ranks that is none")
        if ":" in str(said["device"]):
            raise TargetError(f"device: got {said['device']!r} for {said['name']}, must be without number: one a rank")
        if loader.limits.adversarial:
            alone = "whose processes --adversarial keeps from each other"
            raise TargetError(f"TARGET {place_of(loader.target)}: {said['name']} runs over {count} ranks, {alone}")
        fn = Ranked(loader, at, said, rules.ranks)
    if said["op"] not in OPS or said["layout"] not in (None, *LAYOUTS, *LAYOUTS8):
        raise TargetError(f"TARGET {place_of(loader.target)}: declares an op or a layout that is none")
    plain: dict[str, Any] = {one.name: said[one.name] for one in fields(Kernel) if one.name not in NOT_PLAIN}
    plain = {name: tuple(value) if isinstance(value, list) else value for name, value in plain.items()}
    for name, allowed in (("zeros", ZEROS), ("dtypes", TORCH_DTYPE), ("scheduled_zeros", ZEROS)):
        if not set(plain[name] or ()) <= set(allowed):
            raise TargetError(f"TARGET {place_of(loader.target)}: declares {name} that are none")
    names = (plain["name"], plain["module"], plain["source"], *plain["tiles"])
    if not all(isinstance(text, str) for text in names):
        raise TargetError(f"TARGET {place_of(loader.target)}: declares a name that is none")
    return RemoteKernel(
        fn=fn, contract=rules, supports=fn.supports if said["supports"] else None,
        schedule=fn.schedule if said["schedule"] else None,
        **plain,
    )  # fmt: skip
