"""Networks on graphs under torch.compile: one graph, forward and backward, dense features and sparse ones."""

from __future__ import annotations

import pytest
import torch

import contnet_fast as cf
from contnet_fast.models import CGNN, GDE, GRAND, WCGNN
from contnet_fast.nn import SparseFeatures

pytestmark = pytest.mark.filterwarnings("ignore:.*runs in plain PyTorch", "ignore:.*torch.jit.script")
NETS = {
    "cgnn": lambda: CGNN(30, 8, 3, num_nodes=20, n_steps=3),
    "wcgnn": lambda: WCGNN(30, 8, 3, num_nodes=20, n_steps=3),
    "gde": lambda: GDE(30, 8, 3),
    "controlled": lambda: GDE(30, 8, 3, field="controlled_gat", heads=2),
    "grand": lambda: GRAND(30, 8, 3, n_steps=3, attention_dim=16),
    "grand-nl": lambda: GRAND(30, 8, 3, n_steps=3, attention_dim=16, linear=False),
}


@pytest.mark.parametrize("kind", list(NETS))
def test_a_network_on_a_graph_compiles_to_one_graph(kind):
    torch.manual_seed(0)
    graph = cf.Graph(torch.randint(0, 19, (2, 60)), num_nodes=20).symmetrized().normalized()
    words = torch.rand(20, 30)
    net = NETS[kind]().eval()
    compiled = torch.compile(net, fullgraph=True, backend="aot_eager")
    for x, t_end in ((words, 1.5), (SparseFeatures(words), 2.5)):
        net.block.field.t_end = t_end
        found, wanted = (
            (y, *torch.autograd.grad(y.square().sum(), list(net.parameters())))
            for y in (compiled(x, graph), net(x, graph))
        )
        torch.testing.assert_close(found, wanted)
