"""Benchmarks, run from the checkout as modules: ``python -m benchmarks.suite.run --quick``.

    suite     blocks, networks, stage combinations, memory and scaling beside PyTorch (``make bench``)
    odeint    ``cf.odeint`` beside torchdiffeq, torchode and loops written by hand
    training  whole trainings of the paper's networks: time to accuracy
    study     accuracy by scheme, schedule and seed, and the pendulum
    gpu       everything that an NVIDIA GPU can show, in one run (``make gpu``)
    report    tables and charts of README and docs (``make report``), and two files of results compared
    common    timing, errors that a contender may have, files of results, command lines
    results   what was measured

Modules import ``common`` and their own folder; ``gpu`` and ``report`` import the other folders too.
"""
