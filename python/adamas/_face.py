"""What people see of an optimizer: its repr, a table of its parameters, and HTML for notebooks."""

from __future__ import annotations

import html as markup
import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from . import _options

if TYPE_CHECKING:
    from ._groups import Member
    from ._optimizer import Optimizer
    from ._rates import Rate
    from ._settings import Settings

_MAX_GROUPS = 8  # that are described one by one
_MAX_ROWS = 60  # of a table in a notebook

_HEAD = ("name", "shape", "dtype", "elements", "group", "lr", "weight_decay", "state")
_LEFT = ("name", "shape")


def described(optimizer: Optimizer) -> str:
    """Return what an optimizer is: options that are not as usual, sizes, groups."""
    lines = [
        f"{type(optimizer).__name__}({', '.join(_options_shown(optimizer))})",
        _sizes(optimizer),
    ]
    count = len(optimizer._rates.learning_rates)
    if optimizer._grouped:
        shown = [f"groups[{i}]: {group(optimizer, i)}" for i in range(min(count, _MAX_GROUPS))]
        lines += shown + ([f"... {count} groups"] if count > _MAX_GROUPS else [])
    return "\n  ".join(lines)


def _options_shown(optimizer: Optimizer) -> list[str]:
    shown = [] if optimizer._grouped else _rates_shown(optimizer, 0, "learning_rate")
    options = {**_options.plain(optimizer._given), "loss_scale": optimizer.loss_scale}
    usual = optimizer._usual_options
    return shown + [f"{name}={value!r}" for name, value in options.items() if value != usual[name]]


def _sizes(optimizer: Optimizer) -> str:
    place = (
        f"CUDA device {optimizer._native.device}" if optimizer._native.device >= 0 else "the CPU"
    )
    return (
        f"{_amount(optimizer._members)}; step {optimizer.global_step}; state "
        f"{_bytes(optimizer.state_nbytes)} on {place}"
    )


def group(optimizer: Settings, place: int) -> str:
    """Return what the parameters of a group are, and what applies to them."""
    members = [member for member in optimizer._members if member.group == place]
    shown = _rates_shown(optimizer, place, "lr")
    own = _options.plain(optimizer._configs[place], _options.GROUP_OPTIONS)
    usual = _options.plain(optimizer._defaults.config)
    shown += [f"{name}={value!r}" for name, value in own.items() if value != usual[name]]
    if any(member.grad_centralization for member in members):
        shown.append("grad_centralization=True")
    return f"{_amount(members)}; {', '.join(shown)}"


def _rates_shown(optimizer: Settings, place: int, name: str) -> list[str]:
    rates = optimizer._rates
    shown = [f"{name}={_source(rates.learning_rates[place])}"]
    decay = _source(rates.weight_decays[place])
    return shown if decay == "0" else [*shown, f"weight_decay={decay}"]


def _source(rate: Rate) -> str:
    """Return a rate as short as can be understood, without asking it."""
    source = rate.source
    if isinstance(source, float):
        return f"{source:.6g}"
    if isinstance(source, list):
        return f"{len(source)} values"
    shown = repr(source)
    return f"{getattr(source, '__name__', type(source).__name__)}()" if " at 0x" in shown else shown


def _amount(members: Sequence[Member]) -> str:
    elements = sum(member.parameter.size for member in members)
    return f"{_count(len(members), 'parameter')}, {_count(elements, 'element')}"


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}{'s' * (number != 1)}"


def _bytes(count: int) -> str:
    value, unit = float(count), 0
    units = ("B", "kB", "MB", "GB", "TB")
    while value >= 1000 and unit < len(units) - 1:
        value, unit = value / 1000, unit + 1
    return f"{value:.3g} {units[unit]}" if value < 1000 else f"{value:.0f} {units[unit]}"


# Tables


def _rows(optimizer: Optimizer, count: int | None = None) -> list[tuple[str, ...]]:
    step = optimizer.global_step
    rates = optimizer._rates
    rows: list[tuple[str, ...]] = []
    for i, member in enumerate(optimizer._members[:count]):
        parameter = member.parameter
        decay = _value(rates.weight_decays[member.group], step) if member.decays else "0"
        rows.append(
            (
                member.name,
                str(parameter.shape),
                parameter.dtype.name,
                f"{parameter.size:,}",
                str(member.group),
                _value(rates.learning_rates[member.group], step),
                decay,
                _bytes(_state_bytes(optimizer, i)),
            )
        )
    return rows


def _value(rate: Rate, step: int) -> str:
    """Return the value at a step; a schedule that fails is no reason for a table to do so."""
    try:
        return f"{rate.at(step):.6g}"
    except Exception as error:
        return type(error).__name__


def _state_bytes(optimizer: Optimizer, position: int) -> int:
    layout = optimizer._native.layout(position).values()
    return sum(math.prod(shape) * dtype.itemsize for shape, dtype in layout)


def _total(optimizer: Optimizer) -> tuple[str, ...]:
    elements = sum(member.parameter.size for member in optimizer._members)
    return ("total", "", "", f"{elements:,}", "", "", "", _bytes(optimizer.state_nbytes))


def text_table(optimizer: Optimizer) -> str:
    """Return a table of all parameters."""
    rows = [_HEAD, *_rows(optimizer), _total(optimizer)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = (
        "  ".join(
            cell.ljust(width) if name in _LEFT else cell.rjust(width)
            for name, cell, width in zip(_HEAD, row, widths, strict=True)
        )
        for row in rows
    )
    return "\n".join(lines)


def html(optimizer: Optimizer) -> str:
    """Return the repr and a table of the first parameters."""
    rows = _rows(optimizer, _MAX_ROWS)
    hidden = len(optimizer._members) - len(rows)
    if hidden:
        rows.append((f"... {hidden:,} more", *[""] * (len(_HEAD) - 1)))
    body = "".join(_html_row(row, "td") for row in [*rows, _total(optimizer)])
    return (
        f"<pre>{markup.escape(described(optimizer))}</pre>"
        f"<table><thead>{_html_row(_HEAD, 'th')}</thead><tbody>{body}</tbody></table>"
    )


def _html_row(cells: Iterable[Any], tag: str) -> str:
    return f"<tr>{''.join(f'<{tag}>{markup.escape(cell)}</{tag}>' for cell in cells)}</tr>"
