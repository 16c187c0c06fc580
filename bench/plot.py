"""Draw what run.py measured: peers.png and states.png, beside the JSON file.

    python bench/plot.py baseline

peers.png shows the time of a step over that of the limit for sizes of one tensor, a line for each
peer. states.png shows what 16-bit and 8-bit moments gain over the float32 limit: dashed, what the
number of bytes would allow; dotted, what moving that many bytes took.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")
import matplotlib.pyplot as plt

import report
from measure import Row

Line = list[tuple[int, float]]  # elements, ratio to the limit
_SIZES = [f"n1e{power}" for power in range(3, 9)]
_CACHED = 10_000  # elements; below, calls and not bytes make the time
_INK, _GRID = "#333333", "#e4e4e4"
_PEERS = {  # peer: label, colour
    "adamas": ("adamas", "#c8102e"),
    "torch_fused": ("torch fused", "#e08a1e"),
    "torch_foreach": ("torch foreach", "#b8a13a"),
    "deepspeed": ("DeepSpeed", "#2f6fb5"),
    "thinc": ("thinc", "#7a5aa6"),
    "optax": ("optax", "#2a9d8f"),
    "mindspore": ("MindSpore", "#5b9bd5"),
    "numpy": ("NumPy", "#8a8a8a"),
}
_STATES = {  # peer: label, colour, bytes moved for an element
    "adamas": ("float32 moments", "#c8102e", 28),
    "adamas_bf16": ("bfloat16 moments", "#2f6fb5", 20),
    "adamas_int8": ("8-bit moments", "#2a9d8f", 16),
}
_STYLE = {
    "font.size": 10.5,
    "text.color": _INK,
    "axes.labelcolor": _INK,
    "axes.edgecolor": "#999999",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "figure.dpi": 160,
    "savefig.bbox": "tight",
}


def _lines(rows: Sequence[Row], threads: int) -> dict[str, Line]:
    """Return the ratios to the limit of each peer by size."""
    lines: dict[str, Line] = {}
    for row in rows:
        if row.config in _SIZES and row.threads == threads and row.to_limit:
            lines.setdefault(row.peer, []).append((row.elements, statistics.median(row.to_limit)))
    return {peer: sorted(line) for peer, line in lines.items()}


def _axes(title: str, ylabel: str) -> Any:
    axes = plt.figure(figsize=(8, 4.6)).add_subplot()
    axes.set_xscale("log")
    axes.set_xlabel("float32 elements in the tensor")
    axes.set_ylabel(ylabel)
    axes.set_title(title, loc="left", fontsize=12, fontweight="bold", pad=12)
    axes.grid(axis="y", color=_GRID, linewidth=0.8)
    axes.tick_params(which="both", length=0)
    return axes


def _label_ends(axes: Any, ends: Sequence[tuple[float, float, str, str]]) -> None:
    """Write labels to the right of the ends of lines, moved apart where they would touch."""
    axes.figure.canvas.draw()  # fixes the limits of the axes
    height = axes.get_window_extent().height
    step = 1.35 * plt.rcParams["font.size"] * axes.figure.dpi / 72 / height  # of the axes' height
    lowest = float("-inf")
    for x, y, label, colour in sorted(ends, key=lambda end: end[1]):
        _, place = axes.transAxes.inverted().transform(axes.transData.transform((x, y)))
        lowest = max(place, lowest + step)
        axes.annotate(
            label,
            xy=(1.01, lowest),
            xycoords="axes fraction",
            color=colour,
            va="center",
            fontweight="bold" if label == "adamas" else "normal",
            annotation_clip=False,
        )


def _caption(axes: Any, document: dict[str, Any], threads: int, note: str) -> None:
    machine = document["machine"]
    text = f"{machine['cpu']}, {threads} thread(s), {document['date'][:10]}. {_versions(document)}"
    if note:
        text = f"{note}\n{text}"
    axes.figure.text(0.125, -0.02, text, fontsize=7.5, color="#777777", va="top")


def _versions(document: dict[str, Any]) -> str:
    return ", ".join(f"{name} {version}" for name, version in sorted(document["versions"].items()))


def draw_peers(document: dict[str, Any], rows: Sequence[Row], threads: int, path: Path) -> None:
    """Draw the ratio to the limit by size, a line for each peer."""
    axes = _axes(
        "One Adam step against the limit of the memory system",
        "time / time to move the same bytes",
    )
    axes.set_yscale("log")
    lines = _lines(rows, threads)
    ends = []
    for peer, (label, colour) in _PEERS.items():
        if peer not in lines:
            continue
        own = peer == "adamas"
        x, y = zip(*lines[peer], strict=True)
        axes.plot(
            *(x, y),
            color=colour,
            linewidth=2.8 if own else 1.5,
            marker="o",
            markersize=5.5 if own else 3.5,
            zorder=3 if own else 2,
        )
        ends.append((x[-1], y[-1], label, colour))
    axes.axhline(1, color=_INK, linewidth=1, linestyle=(0, (4, 3)))
    axes.text(0.01, 1, "the limit", va="bottom", fontsize=9, transform=axes.get_yaxis_transform())
    axes.yaxis.set_major_formatter(lambda y, _: f"{y:g} x")
    axes.yaxis.set_minor_formatter(mpl.ticker.NullFormatter())
    _label_ends(axes, ends)
    _finish(axes, document, threads, path)


def _draw_floor(axes: Any, count: int, colour: str) -> None:
    """Draw the part of the float32 time that the bytes alone would take."""
    share = count / _STATES["adamas"][2]
    axes.axhline(share, color=colour, linewidth=1.2, linestyle=(0, (4, 3)), alpha=0.8)
    axes.text(
        *(0.01, share * 1.015),
        f"{count} bytes an element: {share:.2f} x",
        color=colour,
        fontsize=8.5,
        va="bottom",
        bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.85, "pad": 0.5},
        transform=axes.get_yaxis_transform(),
    )


def draw_states(document: dict[str, Any], rows: Sequence[Row], threads: int, path: Path) -> None:
    """Draw the time with smaller moments over the float32 limit, and the floors of their bytes."""
    axes = _axes(
        "Smaller moments move fewer bytes",
        "time / time to move the bytes of a float32 step",
    )
    axes.set_yscale("log", base=2)
    lines = _lines([row for row in rows if row.elements >= _CACHED], threads)
    ends = []
    for peer, (label, colour, count) in _STATES.items():
        _draw_floor(axes, count, colour)
        traffic = lines.get(peer.replace("adamas", "limit"))
        if traffic and peer != "adamas":
            axes.plot(*zip(*traffic, strict=True), color=colour, linewidth=1.3, linestyle=":")
        if peer in lines:
            x, y = zip(*lines[peer], strict=True)
            axes.plot(x, y, color=colour, linewidth=2.4, marker="o", markersize=5)
            ends.append((x[-1], y[-1], label, colour))
    axes.yaxis.set_major_formatter(lambda y, _: f"{y:g} x")
    _label_ends(axes, ends)
    note = "Dashed: the share of the bytes. Dotted: moving that many bytes without arithmetic."
    _finish(axes, document, threads, path, note)


def _finish(axes: Any, document: dict[str, Any], threads: int, path: Path, note: str = "") -> None:
    _caption(axes, document, threads, note)
    axes.figure.savefig(path)
    plt.close(axes.figure)
    print(path)


def main() -> None:
    """Read the command line and draw both pictures."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("name", nargs="?", default="latest", help="results/NAME.json, or a path")
    parser.add_argument("--threads", type=int, help="default: the most that were measured")
    options = parser.parse_args()
    source = report.path_of(options.name)
    document, rows = report.load(source)
    threads = options.threads or max((row.threads for row in rows), default=1)
    if not _lines(rows, threads):
        print(f"{source.name} has no single tensors with {threads} thread(s): nothing to draw")
        return
    with plt.rc_context(_STYLE):
        for name, draw in (("peers", draw_peers), ("states", draw_states)):
            draw(document, rows, threads, source.with_name(f"{source.stem}-{name}.png"))


if __name__ == "__main__":
    main()
