"""``contnet-fast explain``: which backend runs each block of a run's network, and why."""

from __future__ import annotations

import argparse

from .arguments import count, path, title

HELP = "which backend runs each block of a run's network, and why"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the command."""
    parser.add_argument("run_folder", metavar="RUN", type=path, help="folder of a run")
    parser.add_argument("--batch-size", default="128")
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
    from ..training import load_net, open_run
    from ..training.build import pick_device

    run = open_run(arguments.run_folder)
    device = pick_device(arguments.device)
    batch = count("batch_size", arguments.batch_size)
    rates = None if arguments.rates is None else check_choice("rates", arguments.rates, (*DEVICES, "cpu"))
    world_size = None if arguments.world_size is None else count("world_size", arguments.world_size)
    link = None if arguments.link is None else check_choice("link", arguments.link, tuple(LINKS))
    if link is not None and world_size is None:
        raise ValueError(f"link: got {link!r} without --world-size, accepted: both")
    if not run.image_shape:
        raise ValueError(f"run: got a {run.config.model} on {run.config.data}, accepted: a network of images")
    net, record = load_net(run, device=device)
    print(f"{title(run)}, weights of epoch {record['epoch']}, on {device.type}")
    images = torch.zeros(batch, *run.image_shape, device=device)
    with torch.set_grad_enabled(arguments.training):
        net.train(arguments.training)
        print(explain(net, images, device=rates, measure=arguments.measure, world_size=world_size, link=link))
    return 0
