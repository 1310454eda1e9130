"""Sparse features and the layer that reads them, beside dense ones."""

from __future__ import annotations

import copy
import pickle
import warnings

import pytest
import scipy.sparse
import torch
from torch import nn
from torch.nn import functional as F

from contnet_fast.nn import SparseFeatures, SparseLinear


def dense(n=9, m=6, *, dtype=torch.float64):
    """Mostly zeros; row 3 and column 2 are empty, and so are the last ones."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(n, m, generator=generator, dtype=torch.float64)
    x[torch.rand(n, m, generator=generator) < 0.6] = 0.0
    x[3], x[:, 2], x[-1], x[:, -1] = 0.0, 0.0, 0.0, 0.0
    return x.to(dtype)


def layer(m=6, *, dropout=0.0, dtype=torch.float64, bias=True):
    torch.manual_seed(1)
    return SparseLinear(m, 4, dropout=dropout, bias=bias).to(dtype)


def forms(x):
    coo = scipy.sparse.coo_array(x.numpy())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own, about compressed tensors in beta
        return [
            x,
            x.to_sparse_coo(),
            x.to_sparse_csr(),
            x.to_sparse_csc(),
            coo,
            coo.tocsr(),
            scipy.sparse.csc_array(coo),
        ]


def test_every_matrix_that_is_accepted_is_the_same_one():
    x = dense()
    for given in forms(x):
        features = SparseFeatures(given)
        assert torch.equal(features.to_dense(), x)
        assert (features.shape, features.n_columns, len(features)) == ((9, 6), 6, 9)
        assert features.indptr.tolist() == torch.cat([torch.zeros(1), (x != 0).sum(1).cumsum(0)]).tolist()
    twice = scipy.sparse.coo_array(([1, 2, 4], ([0, 0, 1], [1, 1, 0])), shape=(2, 3))
    assert SparseFeatures(twice).to_dense().tolist() == [[0.0, 3.0, 0.0], [4.0, 0.0, 0.0]]


def test_rows_as_they_are_given_with_equal_columns_adding_up():
    features = SparseFeatures.of_rows(
        torch.tensor([0, 2, 2, 4]), torch.tensor([3, 3, 1, 0]), torch.tensor([1.0, 2.0, 3.0, 4.0]), n_columns=5
    )
    assert features.to_dense().tolist() == [[0, 0, 0, 3, 0], [0, 0, 0, 0, 0], [4, 3, 0, 0, 0]]
    y = layer(5, dtype=torch.float32)
    torch.testing.assert_close(y(features), y(features.to_dense()))
    assert features.row_normalized().to_dense().sum(1).tolist() == [1.0, 0.0, 1.0]


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("training", [True, False])
def test_the_layer_is_a_linear_layer(bias, training):
    x, sparse = dense(), layer(bias=bias).train(training)
    plain = nn.Linear(6, 4, bias=bias).double()
    plain.load_state_dict(sparse.state_dict())
    found = []
    for net, given in ((sparse, SparseFeatures(x)), (sparse, x), (plain, x)):
        y = net(given)
        found.append((y, *torch.autograd.grad(y.square().sum(), list(net.parameters()))))
    torch.testing.assert_close(found[0], found[2], rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(found[1], found[2], rtol=1e-13, atol=1e-13)


def test_gradients_by_weight_bias_and_values():
    x, net = SparseFeatures(dense(5, 4)), layer(4)
    leaves = [t.detach().clone().requires_grad_() for t in (x.values, net.weight, net.bias)]

    def apply(values, weight, bias):
        return torch.func.functional_call(net, {"weight": weight, "bias": bias}, (x.with_values(values),))

    assert torch.autograd.gradcheck(apply, leaves)
    assert torch.autograd.gradgradcheck(apply, leaves)


def test_no_warning_and_no_dense_copy():
    x = SparseFeatures(dense())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        layer(dropout=0.5)(x).sum().backward()
    wide = SparseFeatures.of_rows(torch.tensor([0, 1]), torch.tensor([7]), torch.ones(1), n_columns=10)
    assert wide.values.numel() == 1


def test_dropout_is_that_of_dense_features():
    x = torch.ones(200, 500)
    x[:, 1::2] = 0.0
    net = SparseLinear(500, 500, bias=False, dropout=0.3)
    net.weight.data.copy_(torch.eye(500))
    torch.manual_seed(0)
    y = net(SparseFeatures(x))
    assert torch.equal(y[:, 1::2], x[:, 1::2])
    kept = y[:, ::2]
    assert torch.equal(kept.unique(), torch.tensor([0.0, 1 / 0.7]))
    assert abs((kept == 0).double().mean() - 0.3) < 5 * (0.21 / kept.numel()) ** 0.5
    by_row, by_column = (kept == 0).double().mean(1), (kept == 0).double().mean(0)
    assert by_row.std() < 1.2 * (0.21 / 250) ** 0.5  # drawn one by one, not by row or by column
    assert by_column.std() < 1.2 * (0.21 / 200) ** 0.5
    torch.manual_seed(0)
    assert torch.equal(net(SparseFeatures(x)), y)
    assert not torch.equal(net(SparseFeatures(x)), y)
    net.eval()
    assert torch.equal(net(SparseFeatures(x)), x)


def test_the_gradient_of_dropped_entries_is_that_of_what_was_read():
    x, net = SparseFeatures(dense()), layer(dropout=0.5)
    net.bias.data.zero_()
    torch.manual_seed(2)
    y = net(x)
    (by_weight,) = torch.autograd.grad(y, net.weight, torch.ones_like(y))
    torch.manual_seed(2)
    read = x.with_values(net._dropped(x.values)).to_dense()
    torch.testing.assert_close(by_weight, torch.ones_like(y).T @ read, rtol=1e-13, atol=1e-13)


def test_dtypes_and_autocast():
    x, net = SparseFeatures(dense(dtype=torch.float32)), layer(dtype=torch.float32)
    assert x.to(torch.float64).dtype == torch.float64
    assert x.to(torch.float32) is x
    expected = F.linear(dense(dtype=torch.float32), net.weight, net.bias)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y, plain = net(x), net(dense(dtype=torch.float32))
    assert y.dtype == plain.dtype == torch.bfloat16
    torch.testing.assert_close(y.float(), expected, rtol=0.03, atol=0.03)
    low = layer(dtype=torch.bfloat16)(x.to(torch.bfloat16))
    assert low.dtype == torch.bfloat16
    torch.testing.assert_close(low.float(), expected, rtol=0.03, atol=0.03)


def test_copies_and_pickles_are_the_same_features():
    x = SparseFeatures(dense())
    for other in (copy.deepcopy(x), pickle.loads(pickle.dumps(x)), x.to("cpu")):
        assert torch.equal(other.to_dense(), x.to_dense())
        assert torch.equal(layer()(other), layer()(x))


def test_features_without_entries_and_without_rows():
    net = layer()
    empty = SparseFeatures(torch.zeros(3, 6, dtype=torch.float64))
    y = net(empty)
    torch.testing.assert_close(y, net.bias.expand(3, 4), rtol=0, atol=0)
    y.sum().backward()
    assert net.weight.grad.abs().sum() == 0
    assert net(SparseFeatures(torch.zeros(0, 6, dtype=torch.float64))).shape == (0, 4)


def test_refusals_name_the_argument():
    x, net = SparseFeatures(dense()), layer()
    starts, ones = torch.tensor([0, 1]), torch.ones(1)
    cases = [
        (TypeError, r"features: got \(9,\)", lambda: SparseFeatures(torch.zeros(9))),
        (TypeError, "features: got list", lambda: SparseFeatures([[1.0]])),
        (ValueError, "values: got some that are not finite", lambda: SparseFeatures(torch.tensor([[torch.nan]]))),
        (ValueError, "indices: got 4, accepted: 0 to 3", lambda: rows(starts, torch.tensor([4]), ones)),
        (ValueError, "indptr: got 0 to 2", lambda: rows(torch.tensor([0, 2]), torch.tensor([0]), ones)),
        (ValueError, "indptr", lambda: rows(torch.tensor([0, 2, 1]), torch.tensor([0]), ones)),
        (TypeError, "indices: got torch.float32", lambda: rows(starts, ones, ones)),
        (TypeError, "values: got torch.int64", lambda: rows(starts, torch.tensor([0]), torch.tensor([1]))),
        (TypeError, "x: got ndarray", lambda: net(dense().numpy())),
        (ValueError, "x: got 6 columns, accepted: 5", lambda: layer(5)(x)),
        (TypeError, "x: got dtype torch.float32", lambda: net(x.to(torch.float32))),
        (ValueError, "dropout: got 1", lambda: SparseLinear(3, 4, dropout=1)),
        (ValueError, "values: got shape", lambda: x.with_values(torch.ones(2))),
        (TypeError, "dtype: got torch.int64", lambda: x.to(torch.int64)),
    ]

    def rows(*parts):
        return SparseFeatures.of_rows(*parts, n_columns=4)

    for error, message, call in cases:
        with pytest.raises(error, match=message):
            call()
