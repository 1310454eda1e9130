"""Finding tiles by timing, offline: ``contnet-fast tune`` on a machine with a GPU writes a file of tiles.

For each kernel, width of operands and block of channels it starts from the tile in use and moves to whichever
neighbour (half or twice the pixels, channels or warps, one stage of pipelining more or less, another limit of registers) is fastest, until none is.
What is timed is the whole pass that the kernel stands in, replayed as a CUDA graph, so launch costs of Python are not
part of it. A tile whose results differ from those of the first, or that does not compile, is left out and said so.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import triton

from ....files import write_text
from ....triton import tiles
from ....triton.launch import INTERPRETED
from ....triton.tiles import Key, Table, Tile
from .manifest import Block, Pass

SIZES = {16: 32, 32: 16, 64: 8, 128: 16, 256: 8}  # side of the maps for a block of channels
DTYPES = {"16-bit": "bfloat16", "32-bit": "float32"}
LOAD = "combine_on_load"  # tuned like a kernel
REGISTERS = (0, 128, 168, 255)
NEEDS_BACKWARD = ("gradient", "weights", "pointwise")
Timer = Callable[[Callable[[], list[torch.Tensor]]], float]


@dataclass(frozen=True)
class Trial:
    """One tile that was tried: seconds of the pass, or why there are none."""

    key: Key
    tile: Tile
    seconds: float | None
    reason: str = ""


def keys(arch: str, kernels: Sequence[str], operands: Sequence[str], widths: Sequence[int]) -> Iterator[Key]:
    """What is tuned, in order."""
    for kernel in kernels:
        for operand in operands:
            for width in widths:
                yield arch, kernel, operand, width


def block_of(key: Key, batch: int, *, tiny: bool = False) -> Block:
    """The block whose pass is timed for a key."""
    _, kernel, operands, width = key
    level = "solve" if kernel == "solve" else "stage"
    dtype = DTYPES[operands] if not INTERPRETED or operands == "32-bit" else "float16"
    block = Block(
        width, SIZES[width], level, dtype=dtype, batch=batch, backward=kernel in NEEDS_BACKWARD, n_steps=2,
        precision="tf32" if operands == "32-bit" and not INTERPRETED else "ieee",
    )  # fmt: skip
    return replace(block, size=4, batch=2, scheme="euler", n_steps=1) if tiny else block


def neighbours(tile: Tile, width: int) -> list[Tile]:
    """Tiles one move away that a program could have."""
    moves = [
        replace(tile, pixels=tile.pixels * 2), replace(tile, pixels=tile.pixels // 2),
        replace(tile, channels=tile.channels * 2), replace(tile, channels=tile.channels // 2),
        replace(tile, warps=tile.warps * 2), replace(tile, warps=tile.warps // 2),
        replace(tile, stages=tile.stages + 1), replace(tile, stages=tile.stages - 1),
        *(replace(tile, registers=most) for most in REGISTERS if most != tile.registers),
    ]  # fmt: skip
    return [
        t for t in moves
        if 16 <= t.pixels <= 512 and 16 <= t.channels <= width and 1 <= t.warps <= 16 and 1 <= t.stages <= 4
        and t.registers * 32 * t.warps <= tiles.MOST_REGISTERS
    ]  # fmt: skip


def graph_time(run: Callable[[], list[torch.Tensor]]) -> float:
    """Median seconds of a pass, replayed as a CUDA graph."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    return 1e-3 * float(triton.testing.do_bench(graph.replay, warmup=20, rep=60, return_mode="median"))


def wall_time(run: Callable[[], list[torch.Tensor]]) -> float:
    """Seconds of one run: of the interpreter, which tells nothing about a GPU."""
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def close(results: list[torch.Tensor], expected: list[torch.Tensor], operands: str) -> bool:
    """Whether two tiles gave the same numbers, but for the order of sums."""
    limit = 3e-2 if operands == "16-bit" else 1e-2
    errors = [float((a.float() - b.float()).norm() / b.float().norm().clamp(min=1e-20))
              for a, b in zip(results, expected, strict=True)]  # fmt: skip
    return all(error <= limit for error in errors)


def tune_key(
    key: Key, table: Table, timer: Timer, *, block: Block, device: torch.device, done: Callable[[Trial], None],
    most: int = 24,
) -> Tile:  # fmt: skip
    """The fastest tile found for ``key``, after at most ``most`` trials."""
    arch, _, operands, width = key
    run = Pass(block, arch, device)
    best, best_seconds, expected = table.tiles[key], float("inf"), None
    seen: set[Tile] = set()
    queue = [best]
    while queue and len(seen) < most:
        tile = queue.pop(0)
        if tile in seen:
            continue
        seen.add(tile)
        with tiles.use(replace(table, tiles={**table.tiles, key: tile})):
            try:
                results = run.run()
                if expected is not None and not close(results, expected, operands):
                    done(Trial(key, tile, None, "its results differ"))
                    continue
                expected = results if expected is None else expected
                seconds = timer(run.run)
            except (
                triton.runtime.errors.OutOfResources,
                triton.CompilationError,
                triton.runtime.errors.PTXASError,
            ) as e:
                done(Trial(key, tile, None, str(e).strip().splitlines()[-1][:100]))
                continue
        done(Trial(key, tile, seconds))
        if seconds < 0.99 * best_seconds:
            best, best_seconds = tile, seconds
            queue = neighbours(best, width)
    if best_seconds == float("inf"):
        raise RuntimeError(f"tune: no tile of {key} ran, not even the one in use")
    return best


def tune_load(
    key: Key, table: Table, timer: Timer, *, device: torch.device, batch: int, tiny: bool, done: Callable[[Trial], None]
) -> bool:  # fmt: skip
    """Whether order "post" is faster with stages combined on load: a forward pass at level stage, both ways."""
    arch, _, operands, width = key
    block = replace(block_of((arch, "stage", operands, width), batch, tiny=tiny), order="post", scheme="heun2")
    run, seconds, results = Pass(block, arch, device), {}, []
    for choice in (False, True):
        with tiles.use(replace(table, loads={**table.loads, (arch, operands, width): choice})):
            results.append(run.run())
            seconds[choice] = timer(run.run)
        tile = table.tiles[arch, "stage", operands, width]
        done(Trial((arch, f"{LOAD}={choice}", operands, width), tile, seconds[choice]))
    first, second = results
    if not close(second, first, operands):
        raise RuntimeError(f"tune: order post of {key[2:]} differs between its two ways")
    return seconds[True] < seconds[False]


def tune(
    out: Path, wanted: Sequence[Key], timer: Timer, *, batch: int, device: torch.device, source: str,
    done: Callable[[Trial], None], tiny: bool = False, most: int = 24,
) -> Table:  # fmt: skip
    """Tune ``wanted`` keys one after another; ``out`` is written after each, so what was found is never lost."""
    table = tiles.current()
    timed: list[str] = []
    for key in wanted:
        entries, loads = dict(table.tiles), dict(table.loads)
        if key[1] == LOAD:
            found = tune_load(key, table, timer, device=device, batch=batch, tiny=tiny, done=done)
            loads[key[0], key[2], key[3]] = found
        else:
            block = block_of(key, batch, tiny=tiny)
            entries[key] = tune_key(key, table, timer, block=block, device=device, done=done, most=most)
        timed.append(f"{key[1]} {key[2]} {key[3]}")
        sources = {**table.sources, key[0]: f"{source}: {', '.join(timed)}; the rest {tiles.current().sources[key[0]]}"}
        table = Table(entries, loads, sources)
        write_text(out, json.dumps(tiles.as_data(table), indent=1) + "\n")
    return table
