"""What solves of the diffusion field on GPUs keep for their backward pass."""

from __future__ import annotations

from ..family import Call, TensorSpec


def maps_kept(keep: str, n_steps: int, stages: int) -> int:
    """How many maps outlive a forward pass: states of steps, and with "none" inputs of stages and products A u."""
    states = n_steps - 1
    if keep == "none":
        return states + n_steps * (2 * stages - 1)
    return states if keep == "step" else 0


def policy(call: Call) -> str:
    """What ``call`` keeps: at level solve "none" is states alone, since all else is computed again."""
    return "step" if call.keep == "none" and call.level == "solve" else call.keep


def kept_maps(call: Call) -> tuple[TensorSpec, ...]:
    """Maps in the dtype of the state, one after another."""
    maps = maps_kept(policy(call), call.grid.n_steps, len(call.grid.update))
    return (TensorSpec((maps, *call.x.shape), call.x.dtype),)
