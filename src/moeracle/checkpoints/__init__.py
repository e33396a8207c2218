"""Real checkpoints: what their files hold, read lazily, recognised by config and tensors, and never unpickled."""

from .checkpoint import Checkpoint, load_checkpoint

__all__ = ["Checkpoint", "load_checkpoint"]
