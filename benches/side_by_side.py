#!/usr/bin/env python3
"""Times `tessera-bench` and its peers in turn, in one run, and prints a Markdown table for each work.

A pass costs the CPU seconds, user and system, of a whole process that makes 1 + N passes, less those of one that makes
one, divided by N: what it takes to start, load and warm up cancels. Every contender runs once in every round, and
ratios are taken round by round, so that whatever else the machine does slows both sides. Errors are told against
PyTorch in f32, as PSNR over the range of its output. The peak memory is that of a whole process. It judges nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from peers import PEERS
from works import ops, work

HERE = Path(__file__).resolve().parent
OURS = ("fast", "exact")
NETWORKS = ("rrdb 64x64", "rrdb 128x128", "compact 256x256")
REFERENCE = "torch-f32"
OPS_PEERS = ("torch-f32", "torch-bf16-cl")  # what all of them run, unless others are asked for
MOST_PASSES = 10_000

Command = Callable[[int, Path], list[str]]  # the command line that makes so many passes


@dataclass
class Contender:
    """A program, and what each round found of it."""

    command: Command
    passes: int = 0
    cpu_s: list[float] = field(default_factory=list)
    wall_s: list[float] = field(default_factory=list)
    peak_bytes: int = 0


@dataclass(frozen=True)
class Process:
    """What one process took."""

    cpu_s: float
    wall_s: float
    peak_bytes: int


class ProcessError(Exception):
    """A process ended with an error."""


def measure(argv: list[str], threads: int) -> Process:
    """Runs a command to its end."""
    env = os.environ | {"OMP_NUM_THREADS": str(threads)}
    with tempfile.TemporaryFile() as errors:
        started = time.perf_counter()
        process = subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=errors, env=env)
        _, status, usage = os.wait4(process.pid, 0)
        wall_s = time.perf_counter() - started
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            errors.seek(0)
            raise ProcessError(errors.read()[-300:].decode(errors="replace").strip())
    unit = 1 if sys.platform == "darwin" else 1024
    return Process(usage.ru_utime + usage.ru_stime, wall_s, usage.ru_maxrss * unit)


def our_command(binary: Path, name: str, precision: str, threads: int) -> Command:
    """Returns the command line of `tessera-bench` for a work."""
    kind, _, rest = name.partition(" ")
    single = name in ops()
    which = ["ops", "1", "1"] if single else [kind, *rest.split("x")]
    how = ["--precision", precision, "--threads", str(threads), *(["--only", name] if single else [])]
    return lambda passes, out: [str(binary), *which, str(passes), str(out), *how]


def peer_command(peer: str, name: str, threads: int, models: Path) -> Command:
    """Returns the command line of a peer for a work."""
    how = [sys.executable, str(HERE / "peers.py"), peer, name, "--threads", str(threads), "--models", str(models)]
    return lambda passes, out: [*how, "--out", str(out), str(passes)]


def size(contender: Contender, span_s: float, threads: int, out: Path) -> None:
    """Finds how many passes take about `span_s` CPU seconds: as many on each thread."""
    few, spent_s = threads, 0.0
    while few <= MOST_PASSES:
        one = measure(contender.command(1, out), threads)
        spent_s = (measure(contender.command(1 + few, out), threads).cpu_s - one.cpu_s) / few
        if spent_s * few > span_s / 20:
            break
        few *= 10  # so little is lost in what the start takes, now more, now less
    wanted = span_s / max(spent_s, span_s / MOST_PASSES)
    contender.passes = threads * max(1, round(wanted / threads))


def compare(
    contenders: dict[str, Contender], rounds: int, span_s: float, threads: int, folder: Path
) -> dict[str, np.ndarray]:
    """Runs all in turn and returns the output of each. One that fails is told and left out."""
    for name in [name for name, contender in contenders.items() if not contender.passes]:
        try:
            size(contenders[name], span_s, threads, folder / "out")
        except ProcessError as error:
            print(f"{name} is left out: {error}", file=sys.stderr)
            del contenders[name]
    for _ in range(rounds):
        for name, contender in contenders.items():
            out = folder / f"{name}.out"
            one = measure(contender.command(1, out), threads)
            more = measure(contender.command(1 + contender.passes, out), threads)
            contender.cpu_s.append((more.cpu_s - one.cpu_s) / contender.passes)
            contender.wall_s.append((more.wall_s - one.wall_s) / contender.passes)
            contender.peak_bytes = max(contender.peak_bytes, one.peak_bytes, more.peak_bytes)
    # Read only now: a child is charged with the memory that this process holds when it starts it.
    return {name: np.fromfile(folder / f"{name}.out", np.float32) for name in contenders}


def psnr(output: np.ndarray, reference: np.ndarray) -> str:
    """Returns the peak signal-to-noise ratio in dB over the range of the reference."""
    if output.size != reference.size:
        return f"{output.size} values for {reference.size}"
    error = np.sqrt(np.mean((output.astype(np.float64) - reference) ** 2))
    return "same" if error == 0 else f"{20 * np.log10((reference.max() - reference.min()) / error):.1f}"


def spread(values: Sequence[float]) -> str:
    return f"{statistics.median(values):.2f} ({min(values):.2f}-{max(values):.2f})"


def table(name: str, flop: float | None, contenders: dict[str, Contender], outputs: dict[str, np.ndarray]) -> str:
    """Returns what was found of one work as Markdown. It takes `flop` operations, if they are counted."""
    ours = [f"tessera {precision}" for precision in OURS if f"tessera {precision}" in contenders]
    head = ["contender", "CPU ms", "wall ms", "GFLOP/CPU-s", *(f"{our} is x times faster" for our in ours)]
    head += ["PSNR dB", "peak MiB", *(f"memory of {our}" for our in ours)]
    rows = [head, ["---"] * len(head)]
    for other, found in contenders.items():
        milliseconds = [1e3 * cpu_s for cpu_s in found.cpu_s]
        row = [other, spread(milliseconds), f"{1e3 * statistics.median(found.wall_s):.2f}"]
        row.append(f"{flop / 1e9 / statistics.median(found.cpu_s):.0f}" if flop else "-")
        row += [spread([a / b for a, b in zip(found.cpu_s, contenders[our].cpu_s, strict=True)]) for our in ours]
        row.append(psnr(outputs[other], outputs[REFERENCE]) if REFERENCE in outputs else "-")
        row.append(f"{found.peak_bytes / 2**20:.0f}")
        row += [f"{contenders[our].peak_bytes / found.peak_bytes:.2f}x" for our in ours]
        rows.append(row)
    return f"#### {name}\n\n" + "\n".join(f"| {' | '.join(row)} |" for row in rows) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("works", nargs="*", help="such as `rrdb 64x64` or `ops`; the networks by default")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--span", type=float, default=5.0, help="CPU seconds of passes in a round (5)")
    parser.add_argument("--peers", default=",".join(PEERS), help="all by default, PyTorch alone for single operations")
    parser.add_argument("--ours", type=Path, default=HERE.parent / "target/release/tessera-bench")
    parser.add_argument("--out", type=Path, help="a file that gets the tables as well")
    arguments = parser.parse_args()
    threads = arguments.threads

    names = [name for given in arguments.works or NETWORKS for name in (ops() if given == "ops" else (given,))]
    asked = arguments.peers.split(",")
    if unknown := set(asked) - set(PEERS) - {""}:
        parser.error(f"no peer is called {', '.join(sorted(unknown))}; there are {', '.join(PEERS)}")
    peers = [peer for peer in asked if peer and find_spec(peer.split("-")[0])]
    packages = sorted({peer.split("-")[0] for peer in peers})
    probe = our_command(arguments.ours, "compact 1x1", "fast", threads)(1, Path(os.devnull))
    machine = json.loads(subprocess.run([*probe, "--json"], check=True, capture_output=True, text=True).stdout)
    versions = ", ".join(f"{package} {version(package)}" for package in packages)

    def tell(text: str) -> None:
        print(text, flush=True)
        if arguments.out:
            with arguments.out.open("a") as file:
                print(text, file=file)

    tell(
        f"### {machine['cpu']}, level {machine['level']} ({machine['bytes']}), {threads} thread(s)\n\n"
        f"Median (least-most) of {arguments.rounds} rounds; {versions}.\n"
    )
    everything = arguments.peers == ",".join(PEERS)
    with tempfile.TemporaryDirectory() as folder:
        for name in names:
            chosen = [peer for peer in peers if peer in OPS_PEERS or name not in ops() or not everything]
            contenders = {f"tessera {how}": Contender(our_command(arguments.ours, name, how, threads)) for how in OURS}
            contenders |= {peer: Contender(peer_command(peer, name, threads, Path(folder))) for peer in chosen}
            outputs = compare(contenders, arguments.rounds, arguments.span, threads, Path(folder))
            tell(table(name, work(name).flop, contenders, outputs))
            del outputs


if __name__ == "__main__":
    main()
