"""A plugin of pytest: puts our optimizer in the place of thinc's, before tests are collected."""

import thinc.api
import thinc.optimizers

from adamas.thinc import Adam, Optimizer

thinc.optimizers.Optimizer = thinc.api.Optimizer = Optimizer
thinc.optimizers.Adam = thinc.api.Adam = Adam
thinc.api.registry.optimizers.register("Adam.v1", func=Adam)


def pytest_report_header():
    made = thinc.api.registry.resolve({"optimizer": {"@optimizers": "Adam.v1"}})["optimizer"]
    return f"Adam.v1 is a {type(made).__module__}.{type(made).__qualname__}"
