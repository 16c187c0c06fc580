"""The numbers that choose the random bits of stochastic rounding, one for each parameter."""

from __future__ import annotations

from hashlib import blake2b

from ._parameter import Parameter


def key_of(parameter: Parameter, name: str) -> int:
    """Return a parameter's own key, or one by its name: the same wherever the parameter stands."""
    if parameter.key is not None:
        return parameter.key
    digest = blake2b(name.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1  # 63 bits
