"""Two network namespaces as two hosts that train together, until the cable is pulled: every process ends with words."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time

import pytest
from shared_runs import environment

from contnet_fast.training.checkpoints import load_checkpoint

HOSTS = ("10.77.0.1", "10.77.0.2")
LIMIT = 8  # seconds that a process waits for the others
PATIENCE = 240  # of the test, on a machine that does much else
RUN = ["--recipe", "synthetic", "--width", "4", "--limit", "24", "--batch-size", "6", "--epochs", "100000"]


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, text=True)


@pytest.fixture
def hosts():
    """The names of two namespaces, joined by a cable whose ends are called eth0."""
    names = [f"contnet-{os.getpid()}-{i}" for i in (0, 1)]
    try:
        for name in names:
            ip("netns", "add", name)
        ip("link", "add", "eth0", "netns", names[0], "type", "veth", "peer", "name", "eth0", "netns", names[1])
        for name, address in zip(names, HOSTS, strict=True):
            ip("-n", name, "address", "add", f"{address}/24", "dev", "eth0")
            for device in ("lo", "eth0"):
                ip("-n", name, "link", "set", device, "up")
    except (OSError, subprocess.CalledProcessError) as error:
        remove(names)
        pytest.skip(f"needs the right to make network namespaces ({getattr(error, 'stderr', None) or error})")
    yield names
    remove(names)


def remove(names: list[str]) -> None:
    for name in names:
        with contextlib.suppress(OSError, subprocess.CalledProcessError):
            ip("netns", "delete", name)


def test_every_process_of_two_hosts_ends_with_words_when_they_are_cut_off(hosts, tmp_path):
    out, logs, started = tmp_path / "run", [tmp_path / f"host-{i}.log" for i in (0, 1)], []
    env = {**environment(), "GLOO_SOCKET_IFNAME": "eth0", "PYTHONUNBUFFERED": "1"}
    for i, (host, log) in enumerate(zip(hosts, logs, strict=True)):
        node = ["--nnodes", "2", "--node-rank", str(i), "--master-addr", HOSTS[0], "--master-port", "29500"]
        train = ["-m", "contnet_fast", "train", *RUN, "--dist-timeout", str(LIMIT), "--out", str(out)]
        command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "1", *node, *train]
        with log.open("w") as file:
            started.append(
                subprocess.Popen(
                    ["ip", "netns", "exec", host, *command], env=env, stdout=file, stderr=subprocess.STDOUT
                )
            )
    try:
        end = time.monotonic() + PATIENCE
        while "epoch   1" not in logs[0].read_text() and time.monotonic() < end:
            assert all(process.poll() is None for process in started), [log.read_text() for log in logs]
            time.sleep(0.2)
        ip("-n", hosts[1], "link", "set", "eth0", "down")
        for process in started:
            assert process.wait(timeout=PATIENCE) != 0
    finally:
        for process in started:
            process.kill()
    for rank, log in enumerate(logs):
        text = log.read_text()
        assert f"error: [rank {rank}] another process ended without a word, or its host is cut off" in text
        assert f"go on with contnet-fast train --resume {out}" in text
        assert "ChildFailedError" in text  # torchrun's own last words
    assert load_checkpoint(out, "last")[1]["epoch"] >= 1
