"""``contnet-fast explain``: which backend runs each block of a run's network, and why."""

from __future__ import annotations

import argparse
from typing import Any

from .arguments import count, path, title

HELP = "which backend runs each block of a run's network, and why"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the command."""
    parser.add_argument("run_folder", metavar="RUN", type=path, help="folder of a run")
    parser.add_argument("--batch-size", default="128")
    parser.add_argument("--data-path", help="where the data set of a run on a graph is, if not where the run had it")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--training", action="store_true", help="as in training, not in evaluation")
    parser.add_argument("--measure", action="store_true", help="time the forward pass of each block, over its floor")
    parser.add_argument("--world-size", metavar="N", help="also predict training on N ranks: the share of messages")
    parser.add_argument("--link", help="of the ranks: gloo or nccl; default by the device")
    parser.add_argument("--rates", metavar="DEVICE", help="floors by the rates of A100, H100, H200, B200 or cpu")


def run(arguments: argparse.Namespace) -> int:
    """Run the command; returns the exit status."""
    import torch

    from ..costmodel.costs import DEVICES
    from ..costmodel.messages import LINKS
    from ..errors import check_choice
    from ..inspect.explain import explain
    from ..training import load_net, open_run, run_data
    from ..training.build import pick_device
    from ..training.graphs import NodeTask

    run = open_run(arguments.run_folder)
    device = pick_device(arguments.device)
    batch = count("batch_size", arguments.batch_size)
    rates = None if arguments.rates is None else check_choice("rates", arguments.rates, (*DEVICES, "cpu"))
    world_size = None if arguments.world_size is None else count("world_size", arguments.world_size)
    link = None if arguments.link is None else check_choice("link", arguments.link, tuple(LINKS))
    if link is not None and world_size is None:
        raise ValueError(f"link: got {link!r} without --world-size, accepted: both")
    if run.image_shape:
        if arguments.data_path is not None:
            raise ValueError(f"data_path: got {arguments.data_path} for a network of images, accepted: none")
        inputs: tuple[Any, ...] = (torch.zeros(batch, *run.image_shape, device=device),)
    else:  # blocks on graphs run as its edges are
        data = run_data(run, arguments.data_path).to(device)
        if not isinstance(data, NodeTask):
            raise ValueError(
                f"run: got a {run.config.model}, whose solves are as long as the times of arrival in its data say, "
                "which explain does not read, accepted: a network of images or of nodes"
            )
        if world_size is not None:
            raise ValueError(f"world_size: got {world_size} with a {run.config.model}, accepted: a network of images")
        inputs = (data.features, data.graph)
    net, record = load_net(run, device=device)
    print(f"{title(run)}, weights of epoch {record['epoch']}, on {device.type}")
    with torch.set_grad_enabled(arguments.training):
        net.train(arguments.training)
        print(explain(net, *inputs, device=rates, measure=arguments.measure, world_size=world_size, link=link))
    return 0
