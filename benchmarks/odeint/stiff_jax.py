"""diffrax's Kvaerno5 on the stiff problems, compiled, in a process of its own; prints a line of JSON for each solve.

It counts steps, and not evaluations of the field.
"""

from __future__ import annotations

import json
import os
import sys
import time
from typing import Any

import diffrax
import jax
import jax.numpy as jnp
import optimistix

sys.path += os.environ["STIFF_TORCH"].split(os.pathsep)  # the problems draw their weights by torch

from benchmarks.odeint.stiff_problems import PROBLEMS, StiffProblem


def solver(newton: bool) -> Any:
    """Return Kvaerno5 by its own chord iteration, or by Newton's method with a Jacobian in each iteration."""
    tolerances = diffrax.with_stepsize_controller_tols
    return diffrax.Kvaerno5(root_finder=tolerances(optimistix.Newton)()) if newton else diffrax.Kvaerno5()


def make(problem: StiffProblem, newton: bool) -> Any:
    """Return the solve of (y0, rtol, atol)."""
    field = problem.rate(jnp, lambda w: jnp.asarray(w.numpy()))

    def rate(t: Any, y: Any, args: Any) -> Any:
        return field(t, y)

    def solve(y0: Any, rtol: Any, atol: Any) -> Any:
        controller = diffrax.PIDController(rtol=rtol, atol=atol)
        more = {"stepsize_controller": controller, "max_steps": None}
        found = diffrax.diffeqsolve(diffrax.ODETerm(rate), solver(newton), 0.0, problem.end, None, y0, **more)
        return found.ys[-1], found.stats["num_accepted_steps"], found.stats["num_rejected_steps"]

    return jax.jit(solve)


def main() -> None:
    jax.config.update("jax_enable_x64", True)
    names, exponents, repeats, absolute = json.loads(sys.argv[1])
    for name in names:
        problem, y0 = PROBLEMS[name], jnp.asarray(PROBLEMS[name].start)
        for newton in (False, True):
            contender = "diffrax Kvaerno5, Newton" if newton else "diffrax Kvaerno5"
            start = time.process_time()
            solve = make(problem, newton).lower(y0, 1.0, 1.0).compile()
            compiling, held = time.process_time() - start, solve.memory_analysis()
            for exponent in exponents:
                rtol, seconds = jnp.asarray(10.0**-exponent), []
                tolerance = (rtol, rtol * absolute)
                jax.block_until_ready(solve(y0, *tolerance))
                for _ in range(repeats):
                    start = time.process_time()
                    end, steps, rejected = jax.block_until_ready(solve(y0, *tolerance))
                    seconds.append(time.process_time() - start)
                row = {
                    "problem": name,
                    "contender": contender,
                    "exponent": exponent,
                    "end": end.tolist(),
                    "seconds": seconds,
                    "compile_seconds": compiling,
                    "steps": int(steps),
                    "rejected": int(rejected),
                    "peak_bytes": held.temp_size_in_bytes + held.output_size_in_bytes,
                }
                print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
