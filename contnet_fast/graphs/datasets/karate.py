"""The karate club of W. W. Zachary (Journal of Anthropological Research 33, 1977)."""

from __future__ import annotations

import torch

from .node_data import NodeData, undirected

FRIENDS = (  # of each member, those with a larger number
    (1, 2, 3, 4, 5, 6, 7, 8, 10, 11, 12, 13, 17, 19, 21, 31), (2, 3, 7, 13, 17, 19, 21, 30),
    (3, 7, 8, 9, 13, 27, 28, 32), (7, 12, 13), (6, 10), (6, 10, 16), (16,), (), (30, 32, 33), (33,), (), (), (), (33,),
    (32, 33), (32, 33), (), (), (32, 33), (33,), (32, 33), (), (32, 33), (25, 27, 29, 32, 33), (25, 27, 31), (31,),
    (29, 33), (33,), (31, 33), (32, 33), (32, 33), (32, 33), (33,), (),
)  # fmt: skip
INSTRUCTOR = (0, 1, 2, 3, 4, 5, 6, 7, 8, 10, 11, 12, 13, 16, 17, 19, 21)  # who stayed with him after the split
VALID = (5, 7, 11, 13, 17, 20, 23, 26, 29, 31)


def karate_club() -> NodeData:
    """34 members, 78 friendships, and whom each followed when the club split: the instructor or the president.

    The two of them train (members 0 and 33), ten members validate, 22 test. Features are the identity matrix.
    """
    pairs = [(member, friend) for member, friends in enumerate(FRIENDS) for friend in friends]
    n = len(FRIENDS)
    y = torch.ones(n, dtype=torch.int64)
    y[list(INSTRUCTOR)] = 0
    test = torch.tensor([member for member in range(1, n - 1) if member not in VALID])
    return NodeData(
        "karate", torch.eye(n), y, undirected(torch.tensor(pairs).T, n), torch.tensor([0, n - 1]),
        torch.tensor(VALID), test, ("instructor", "president"),
    )  # fmt: skip
