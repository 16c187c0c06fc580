from typing import Any

TARGET: str
NUMBERS: tuple[str, ...]
API_VERSION: tuple[int, int]

def handler() -> Any: ...
