"""diffrax's Kvaerno5 on the stiff problems, compiled, in a process of its own; prints a line of JSON for each solve."""

from __future__ import annotations

import json
import sys
import time

import diffrax
import jax
import jax.numpy as jnp

from benchmarks.odeint.stiff_problems import PROBLEMS


def main() -> None:
    jax.config.update("jax_enable_x64", True)
    names, exponents, repeats, absolute = json.loads(sys.argv[1])
    for name in names:
        problem = PROBLEMS[name]
        field = problem.rate(jnp, lambda w: jnp.asarray(w.numpy()))
        term = diffrax.ODETerm(lambda t, y, args, field=field: field(t, y))

        @jax.jit
        def solve(y0, rtol, atol, term=term, problem=problem):
            controller = diffrax.PIDController(rtol=rtol, atol=atol)
            found = diffrax.diffeqsolve(
                term, diffrax.Kvaerno5(), 0.0, problem.end, None, y0, stepsize_controller=controller, max_steps=None
            )
            return found.ys[-1], found.stats["num_accepted_steps"], found.stats["num_rejected_steps"]

        y0 = jnp.asarray(problem.start)
        for exponent in exponents:
            rtol, seconds = 10.0**-exponent, []
            jax.block_until_ready(solve(y0, rtol, rtol * absolute))  # compiles
            for _ in range(repeats):
                start = time.process_time()
                end, steps, rejected = jax.block_until_ready(solve(y0, rtol, rtol * absolute))
                seconds.append(time.process_time() - start)
            row = {"problem": name, "contender": "diffrax Kvaerno5", "exponent": exponent, "end": end.tolist()}
            print(
                json.dumps({**row, "seconds": min(seconds), "steps": int(steps), "rejected": int(rejected)}), flush=True
            )


if __name__ == "__main__":
    main()
