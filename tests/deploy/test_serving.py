"""A network that serves: nothing is left to the first request, threads agree, memory stays."""

from __future__ import annotations

import gc
import sys
import threading

import pytest
import torch

import contnet_fast as cf
from contnet_fast import extension
from contnet_fast.schemes.timegrid import _cached_grid

needs_extension = pytest.mark.skipif("cpu" not in cf.available_backends(), reason="needs the C++ extension")
SHAPE = (1, 8, 8)


def network(**options):
    return cf.models.ContinuousNet(1, 3, width=4, **{"n_basis": 2, "n_steps": 2, **options}).eval()


def test_a_warm_network_leaves_nothing_to_the_first_request():
    net = network()
    before = {name: t.clone() for name, t in net.state_dict().items()}
    plan = cf.warmup(net, [(1, *SHAPE), (3, *SHAPE)])
    assert [unit.problem.shape[0] for _, unit in plan.units] == [1] * 7 + [3] * 7
    assert all(torch.equal(t, before[name]) for name, t in net.state_dict().items())
    assert all(p.grad is None for p in net.parameters())
    modules, grids = set(sys.modules), _cached_grid.cache_info().misses
    held = extension.module.pooled_bytes() if extension.module else 0
    with torch.no_grad():
        for n in (1, 3):
            net(torch.randn(n, *SHAPE))
    assert set(sys.modules) == modules
    assert _cached_grid.cache_info().misses == grids
    assert (extension.module.pooled_bytes() if extension.module else 0) == held


def test_shapes_are_of_a_module():
    net = network()
    assert len(cf.warmup(net, (2, *SHAPE)).units) == len(cf.warmup(net, torch.Size((2, *SHAPE))).units) == 7
    with pytest.raises(TypeError, match=r"call: got function with shapes, accepted: a module with parameters"):
        cf.warmup(lambda x: x, (2, 3))


@needs_extension
@pytest.mark.parametrize("options", [{}, {"norm": "group", "order": "pre", "basis": "hat"}], ids=["batch", "group"])
def test_threads_get_the_bits_of_one(options):
    net = network(**options)
    requests = [torch.randn(1 + i % 3, *SHAPE) for i in range(24)]
    with torch.no_grad():
        expected = [net(x) for x in requests]
    got, failed = {}, []
    gate = threading.Barrier(6)

    def serve(worker):
        try:
            gate.wait()
            with torch.no_grad():
                for _ in range(4):
                    for i in range(worker, len(requests), 2):  # several threads have the same request
                        got.setdefault((worker, i), []).append(net(requests[i]))
        except Exception as error:
            failed.append(error)

    threads = [threading.Thread(target=serve, args=(i,)) for i in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed
    assert all(torch.equal(y, expected[i]) for (_, i), ys in got.items() for y in ys)


def resident():
    """Bytes of memory of this process."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
def test_memory_is_flat_over_a_thousand_requests():
    net, x = network(n_steps=1, scheme="euler"), torch.randn(1, *SHAPE)

    def growth(n):
        gc.collect()
        before = resident(), len(gc.get_objects())
        with torch.no_grad():
            for _ in range(n):
                net(x)
        gc.collect()
        return resident() - before[0], len(gc.get_objects()) - before[1]

    growth(50)
    found = [growth(250) for _ in range(4)]  # what leaks, leaks in each; pools of memory settle in the first
    assert min(grown for grown, _ in found) < 250 * 512
    assert min(objects for _, objects in found) < 250
