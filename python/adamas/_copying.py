"""Optimizers and parameters as what pickle and copy.deepcopy take apart and put together again.

What is pickled are the parameters with their arrays, plain numbers and strings, the objects that
rates were made from, and the state as a dictionary: nothing of the inside, so that another version
can read it. Arrays that stand in the same pickle elsewhere (in a model) stay the same arrays.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from . import _core, _options
from ._groups import GroupOptions, Member
from ._rates import Rate, RateBook

if TYPE_CHECKING:
    from ._optimizer import Optimizer


def parts(optimizer: Optimizer) -> dict[str, Any]:
    """Return what an optimizer consists of.

    Raises
    ------
    TypeError
        If a learning rate is an iterator.
    RuntimeError
        If a step in parts is open.
    """
    rates = optimizer._rates
    groups = zip(rates.learning_rates, rates.weight_decays, strict=True)
    return {
        "adamas": _core.__version__,
        "options": _options.plain(optimizer._given),
        "defaults": _sources(optimizer._defaults.learning_rate, optimizer._defaults.weight_decay),
        "groups": [_sources(*pair) for pair in groups],
        "grouped": optimizer._grouped,
        "members": [
            {
                "parameter": member.parameter,
                "name": member.name,
                "group": member.group,
                "decays": member.decays,
                "grad_centralization": member.grad_centralization,
            }
            for member in optimizer._members
        ],
        "unique": optimizer._unique,
        "state": optimizer._state.take(parameters=False),
        "attributes": dict(getattr(optimizer, "__dict__", {})),  # of a user's subclass
    }


def _sources(learning_rate: Rate, weight_decay: Rate) -> dict[str, Any]:
    source = learning_rate.source
    if hasattr(source, "__next__"):
        raise TypeError(
            f"an optimizer whose learning rate is an iterator ({type(source).__name__}) can't be "
            "copied or pickled, because iterators can't be copied; use a list, an array or a "
            "LearningRateSchedule"
        )
    return {"lr": source, "weight_decay": weight_decay.source}


def put_together(optimizer: Optimizer, made: dict[str, Any]) -> None:
    """Make of a new object the optimizer that was taken apart.

    Raises
    ------
    ValueError
        If a later version of adamas has taken it apart, and it has what this one does not know.
    """
    try:
        _put_together(optimizer, made)
    except (KeyError, ValueError) as error:
        version = made.get("adamas", "an unknown version")
        raise ValueError(f"pickled by adamas {version}: {error}") from error


def _put_together(optimizer: Optimizer, made: dict[str, Any]) -> None:
    for name, value in made["attributes"].items():
        object.__setattr__(optimizer, name, value)
    book = optimizer._book = RateBook()
    optimizer._grouped = made["grouped"]
    optimizer._defaults = _rates(made["defaults"], book, "learning_rate", "weight_decay")
    groups = [
        _rates(group, book, f"groups[{i}].lr", f"groups[{i}].weight_decay")
        for i, group in enumerate(made["groups"])
    ]
    members = [Member(**member) for member in made["members"]]
    optimizer._assemble(members, groups, _options.config_of(made["options"]))
    optimizer._unique = made["unique"]
    optimizer._state.load(made["state"])


def _rates(sources: dict[str, Any], book: RateBook, *names: str) -> GroupOptions:
    return GroupOptions(
        book.learning_rate(names[0], sources["lr"]),
        book.weight_decay(names[1], sources["weight_decay"]),
    )
