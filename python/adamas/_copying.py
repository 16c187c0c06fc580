"""Optimizers and parameters as what pickle and copy.deepcopy take apart and put together again.

What is pickled are the parameters with their arrays, plain numbers and strings, the objects that
rates were made from, and the state as a dictionary: nothing of the inside, so that another version
can read it. Arrays that stand in the same pickle elsewhere (in a model) stay the same arrays.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from . import _core, _options
from ._groups import GroupOptions, Member
from ._rates import RateBook
from ._state import OptimizerState

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
    groups = zip(rates.learning_rates, rates.weight_decays, optimizer._configs, strict=True)
    return {
        "adamas": _core.__version__,
        "options": _options.plain(optimizer._given),
        "defaults": _described(optimizer._defaults),
        "groups": [_described(GroupOptions(*group)) for group in groups],
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
        "state": OptimizerState(optimizer).take(parameters=False),
        "attributes": dict(getattr(optimizer, "__dict__", {})),  # of a user's subclass
    }


def _described(group: GroupOptions) -> dict[str, Any]:
    source = group.learning_rate.source
    if hasattr(source, "__next__"):
        raise TypeError(
            f"an optimizer whose learning rate is an iterator ({type(source).__name__}) can't be "
            "copied or pickled, because iterators can't be copied; use a list, an array or a "
            "LearningRateSchedule"
        )
    options = _options.plain(group.config, _options.GROUP_OPTIONS)
    return {"lr": source, "weight_decay": group.weight_decay.source, **options}


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
        setattr(optimizer, name, value)
    optimizer._book = RateBook()
    optimizer._grouped = made["grouped"]
    config = _options.config_of(made["options"])
    optimizer._defaults = _group(optimizer, made["defaults"], config, "learning_rate")
    groups = [
        _group(optimizer, group, config, f"groups[{i}].lr")
        for i, group in enumerate(made["groups"])
    ]
    members = [Member(**member) for member in made["members"]]
    optimizer._assemble(members, groups, config)
    optimizer._unique = made["unique"]
    OptimizerState(optimizer).load(made["state"])


def _group(
    optimizer: Optimizer, described: dict[str, Any], config: _core.AdamConfig, name: str
) -> GroupOptions:
    own = {key: value for key, value in described.items() if key not in ("lr", "weight_decay")}
    book = optimizer._book
    return GroupOptions(
        book.learning_rate(name, described["lr"]),
        book.weight_decay("weight_decay", described["weight_decay"]),
        _options.config_of({**_options.plain(config), **own}),
    )
