"""The numbers that choose the random bits of stochastic rounding, one for each parameter."""

from __future__ import annotations

from hashlib import blake2b


def key_of(name: str) -> int:
    """Return the key of a parameter that has none of its own: the same wherever its name stands."""
    digest = blake2b(name.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1  # 63 bits
