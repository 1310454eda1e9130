"""Tiny files as Planetoid publishes them."""

from __future__ import annotations

import collections
import pickle

import numpy as np
import pytest

KNOWN, TEST, CLASSES, FEATURES = 8, (9, 8, 11), 6, 5  # node 10 is left out, as some of Citeseer are
FRIENDS = {0: [1, 1, 2], 1: [0], 2: [2], 8: [0], 9: [3], 11: [9], 3: []}


def one_hot(labels, classes=CLASSES):
    return np.eye(classes, dtype=np.int32)[list(labels)]


def contents(classes=CLASSES):
    """Parts of a graph of 12 nodes with the classes of Citeseer, the rows of its features, and its labels."""
    scipy = pytest.importorskip("scipy.sparse")
    rng = np.random.default_rng(0)
    rows = (rng.random((KNOWN + len(TEST), FEATURES)) < 0.6).astype(np.float32)
    rows[0], rows[1] = 0.0, 1.0
    labels = rng.integers(0, classes, KNOWN + len(TEST))
    graph = collections.defaultdict(list, FRIENDS)
    allx, tx = scipy.csr_matrix(rows[:KNOWN]), scipy.csr_matrix(rows[KNOWN:])
    parts = {
        **{"x": scipy.csr_matrix(rows[:4]), "allx": allx, "tx": tx, "graph": graph},
        **{name: one_hot(some, classes) for name, some in (("y", labels[:4]), ("ally", labels[:KNOWN]))},
        "ty": one_hot(labels[KNOWN:], classes),
    }
    return parts, rows, labels


def write(folder, parts, places=TEST, *, data="citeseer"):
    for name, part in parts.items():
        (folder / f"ind.{data}.{name}").write_bytes(pickle.dumps(part, protocol=2))
    (folder / f"ind.{data}.test.index").write_text("\n".join(map(str, places)))
