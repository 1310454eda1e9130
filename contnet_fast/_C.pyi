"""The C++ extension (``csrc``); absent where it was not built."""

from collections.abc import Sequence

import torch

def interface() -> int: ...
def built_for_torch() -> str: ...
def compiler() -> str: ...
def cuda_chips() -> list[str]: ...
def cuda_release() -> str: ...
def without_cuda() -> str: ...
def instruction_set() -> str: ...
def instruction_sets() -> list[str]: ...
def use_instruction_set(name: str) -> None: ...
def pooled_bytes() -> int: ...
def release_pool() -> None: ...
def record(on: bool) -> None: ...
def take_runs() -> list[tuple[str, str, str, int | None]]: ...
def plan_solve(
    *,
    channels: int,
    height: int,
    width: int,
    operand_bytes: int,
    sample: bool,
    stages: int,
    shared_limit: int,
    cluster_limit: int,
) -> dict[str, int | bool | str | None]: ...
def plan_convolution(
    *,
    batch: int,
    channels: int,
    height: int,
    width: int,
    operand_bytes: int,
    back: bool,
    shared_limit: int,
    processors: int,
) -> dict[str, int]: ...
def plan_weights(
    *, batch: int, channels: int, height: int, width: int, operand_bytes: int, stages: int, processors: int
) -> dict[str, int]: ...
def stage_refusal(*, batch: int, channels: int, height: int, width: int, sample: bool) -> str | None: ...
def column_scratch(threads: int, groups: int, values: int) -> int: ...
def slots_of(
    counts: Sequence[int], cells: Sequence[int], weights: Sequence[float], basis: int
) -> tuple[list[int], list[list[tuple[int, float]]]]: ...

class Stepper:
    def __init__(
        self,
        *,
        field: object,
        checked: object,
        nodes: Sequence[float],
        rows: Sequence[Sequence[tuple[int, float]]],
        update: Sequence[tuple[int, float]],
        used: Sequence[int],
        weights: Sequence[float],
        errors: Sequence[float],
        rtol: float,
        atol: float,
        sign: float,
        graph: bool,
    ) -> None: ...
    def run(
        self, state: torch.Tensor, rate: torch.Tensor, s: float, h: float, s1: float
    ) -> tuple[list[torch.Tensor], list[list[torch.Tensor]], float]: ...
