"""What the compiled code of a kernel says: registers, product instructions, and the mix of its hot loop."""

from __future__ import annotations

import re
import subprocess
import tempfile
from pathlib import Path

import triton

CLASSES = (  # of machine instructions, by the first pattern that fits
    ("tensor", r"HMMA|HGMMA|IMMA|UTC\w*MMA|WARPGROUP"),
    ("fp32", r"FFMA|FADD|FMUL|FMNMX|FSETP|FSEL|MUFU|HADD2|HFMA2|HMNMX2"),
    ("convert", r"F2F|F2FP|I2F|F2I|PRMT|I2FP"),
    ("global load", r"LDG"),
    ("global store", r"STG"),
    ("async copy", r"LDGSTS|UBLKCP|LDGDEPBAR|UTMALDG"),
    ("shared load", r"LDS|LDSM|LDT"),
    ("shared store", r"STS|STSM"),
    ("barrier", r"BAR|DEPBAR|SYNCS|WARPSYNC|BSYNC|BSSY|FENCE|MEMBAR"),
    (
        "integer",
        r"IMAD|IADD|LOP3|LEA|ISETP|SHF|SEL|PLOP3|VIADD|UIADD|UIMAD|ULEA|ULOP|USHF|USEL|UISETP|IMNMX|VIMNMX|IABS|R2P|P2R",
    ),
    ("branch", r"BRA|EXIT|CALL|RET|NOP|BREAK"),
)


def tool(name: str) -> str:
    """A program of the CUDA tools that triton ships."""
    return str(Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / name)


def registers_of(cubin: bytes) -> int:
    """Registers a thread."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        text = subprocess.run(
            [tool("cuobjdump"), "--dump-resource-usage", file.name], capture_output=True, text=True, check=True
        ).stdout
        found = re.search(r"REG:(\d+)", text)
    assert found is not None
    return int(found[1])


def disassembly(cubin: bytes) -> str:
    """Machine code as text."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        return subprocess.run([tool("nvdisasm"), "-c", file.name], capture_output=True, text=True, check=False).stdout


def instruction(ptx: str) -> str:
    """The instruction that products run on."""
    for name in ("tcgen05.mma", "wgmma.mma_async", "mma.sync"):
        if name in ptx:
            return name.split(".")[0] if name != "mma.sync" else name
    return "fma"


def hot_loop(code: str) -> list[str]:
    """Opcodes of the smallest backward-branching region with the most product instructions; all if there is none."""
    lines: list[str] = []
    labels: dict[str, int] = {}
    jumps: list[tuple[int, int]] = []
    for line in code.splitlines():
        label = re.match(r"\s*(\.L_x_\d+):", line)
        if label:
            labels[label[1]] = len(lines)
            continue
        found = re.search(r"/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_.]+)(.*)", line)
        if not found:
            continue
        target = re.search(r"\(?(\.L_x_\d+)\)?", found[2])
        if found[1].startswith("BRA") and target and target[1] in labels:
            jumps.append((labels[target[1]], len(lines)))
        lines.append(found[1])
    product = re.compile(r"HMMA|HGMMA|UTC\w*MMA")
    regions = [(sum(bool(product.match(op)) for op in lines[a:b]), -(b - a), a, b) for a, b in jumps]
    with_products = [region for region in regions if region[0]]
    if not with_products:
        return lines
    _, _, a, b = max(with_products, key=lambda region: region[1])
    return lines[a : b + 1]


def mix(code: str) -> tuple[tuple[str, int], ...]:
    """Instructions of the hot loop by class."""
    counts = dict.fromkeys([*(name for name, _ in CLASSES), "other"], 0)
    for opcode in hot_loop(code):
        counts[next((name for name, pattern in CLASSES if re.match(pattern, opcode)), "other")] += 1
    return tuple(counts.items())
