"""Checkpoint files: the state of an optimizer, its parameters and its loss-scale manager.

A file is a safetensors file with arrays "NAME.KIND" and, as its only metadata, a JSON text "adamas"
with everything else and a checksum over the whole file. A file appears under its name all at once
or not at all, and is believed only as a whole: what is wrong with it is found before anything is
changed.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import secrets
import stat
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from . import _validation as validation
from ._arrays import FloatArray
from ._optimizer import Optimizer

__all__ = ["load_checkpoint", "save_checkpoint"]

_FORMAT = "adamas checkpoint"
_VERSION = 1

_MARK = b"sha256:"
_DIGITS = 64
_UNSEALED = "0" * _DIGITS
"""The checksum is that of the file with these digits in its place."""

_Path = str | os.PathLike[str]


def save_checkpoint(
    path: _Path, optimizer: Optimizer, *, parameters: bool = True, loss_scale_manager: Any = None
) -> None:
    """Save all that a training needs to go on as if it had never stopped.

    Whatever kills the process or the machine, there is the complete old file under ``path`` or the
    complete new one. Equal states give equal files, byte for byte.

    Parameters
    ----------
    path : str or path-like
        The file, in the safetensors format; an existing one is replaced and its permissions are
        kept. Where it is a symbolic link, its target is replaced.
    optimizer : Adam or AdamWeightDecay
        What to save. Other threads may make steps meanwhile: the file holds the state between two.
    parameters : bool, default True, keyword only
        Whether the parameters are saved too, so that the file is all there needs to be.
    loss_scale_manager : DynamicLossScaleManager or FixedLossScaleManager, optional, keyword only
        Saved with it; or any object with ``state_dict()`` and ``load_state_dict(state)`` whose
        state is made of numbers, strings, lists and dicts of them.

    Raises
    ------
    TypeError
        If an argument has another type, or the manager's state does not go into a file.
    RuntimeError
        If a step in parts (`Adam.begin_step`) is open.
    OSError
        If the file can't be written: no such folder, no permission, a full disk. An existing file
        is as it was.

    See Also
    --------
    load_checkpoint : Goes on from the file.
    Adam.state_dict : The same without a file; says what is in it.

    Notes
    -----
    The file is written beside ``path`` as ``.adamas-*.tmp``, flushed to the disk and renamed. A
    process that is killed leaves that behind; it disturbs nobody and can be deleted. Saving takes
    memory for two copies of what is saved.

    Examples
    --------
    >>> import tempfile
    >>> import numpy as np
    >>> from adamas import Adam, Parameter
    >>> weight = np.ones(2, np.float32)
    >>> optimizer = Adam([Parameter(weight, name="weight")], learning_rate=0.5)
    >>> optimizer((np.ones(2, np.float32),))
    True
    >>> folder = tempfile.TemporaryDirectory()
    >>> save_checkpoint(f"{folder.name}/run.safetensors", optimizer)
    >>> saved = weight.copy()
    >>> optimizer((np.ones(2, np.float32),))
    True
    >>> load_checkpoint(f"{folder.name}/run.safetensors", optimizer)
    >>> optimizer.global_step, bool((weight == saved).all())
    (1, True)
    >>> folder.cleanup()
    """
    _check_arguments(optimizer, loss_scale_manager)
    manager = None if loss_scale_manager is None else loss_scale_manager.state_dict()
    state = optimizer.state_dict(parameters=parameters)
    _replace(path, _sealed(_encoded(state, manager)))


def load_checkpoint(
    path: _Path, optimizer: Optimizer, *, parameters: bool = True, loss_scale_manager: Any = None
) -> None:
    """Go on from a file that `save_checkpoint` has written.

    Parameters
    ----------
    path : str or path-like
        The file.
    optimizer : Adam or AdamWeightDecay
        What to load into, made like the one that was saved: `Adam.load_state_dict` says what must
        be the same.
    parameters : bool, default True, keyword only
        Whether the parameters are loaded; they must be in the file then.
    loss_scale_manager : DynamicLossScaleManager or FixedLossScaleManager, optional, keyword only
        What to load the manager's state into; needed if there is one in the file.

    Raises
    ------
    TypeError
        If an argument has another type.
    ValueError
        If the file is truncated, damaged or no checkpoint of adamas, of another version, or not of
        an optimizer like this one. The message names the file, the entry, what was wanted and what
        came.
    RuntimeError
        If a step in parts (`Adam.begin_step`) is open.
    OSError
        If the file can't be read.

    Whatever is raised, nothing has changed.

    Notes
    -----
    The file is read into memory as a whole, twice while its arrays are taken apart.

    Examples
    --------
    See `save_checkpoint`.
    """
    _check_arguments(optimizer, loss_scale_manager)
    parameters = validation.flag("parameters", parameters)
    content = Path(path).read_bytes()
    try:
        description = _verified_description(content)
        state = _state(description, content, parameters)
        _load(optimizer, state, loss_scale_manager, description["loss_scale_manager"])
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{os.fspath(path)}: {error}") from error


def _check_arguments(optimizer: Any, manager: Any) -> None:
    if not isinstance(optimizer, Optimizer):
        raise TypeError(f"optimizer must be one of adamas, got {validation.shown(optimizer)}")
    methods = [getattr(manager, name, None) for name in ("state_dict", "load_state_dict")]
    if manager is not None and not all(callable(method) for method in methods):
        raise TypeError(
            "loss_scale_manager must have methods state_dict() and load_state_dict(state), got "
            f"{validation.shown(manager)}"
        )


# The content


def _encoded(state: dict[str, Any], manager: Any) -> bytes:
    """Return the file but for its checksum.

    One text of metadata with sorted keys, because safetensors writes several in random order.
    """
    from safetensors.numpy import save

    arrays, parameters = {}, []
    for name, entry in state["parameters"].items():
        plain = {"name": name}
        for key, value in entry.items():
            if isinstance(value, np.ndarray):
                arrays[f"{name}.{key}"] = value
            else:
                plain[key] = value
        parameters.append(plain)
    description = {
        "checksum": _MARK.decode() + _UNSEALED,
        "format": _FORMAT,
        "loss_scale_manager": manager,
        "state": {**state, "parameters": parameters},
        "version": _VERSION,
    }
    try:
        text = json.dumps(description, sort_keys=True, separators=(",", ":"))
    except (TypeError, ValueError) as error:
        raise TypeError(f"loss_scale_manager has a state that is not plain: {error}") from error
    content: bytes = save(arrays, {"adamas": text})
    return content


def _sealed(content: bytes) -> list[bytes | memoryview]:
    """Return the parts of the file, its checksum among them."""
    place = content.index(_MARK) + len(_MARK)  # that of the first key of the first entry
    view = memoryview(content)
    checksum = hashlib.sha256(content).hexdigest().encode()
    return [view[:place], checksum, view[place + _DIGITS :]]


def _description(content: bytes) -> dict[str, Any]:
    """Return the metadata of a file of this format, which may be damaged still."""
    length = int.from_bytes(content[:8], "little")
    try:
        header = json.loads(content[8 : 8 + length])
        description = json.loads(header["__metadata__"]["adamas"])
        found, version = description["format"], description["version"]
    except (KeyError, TypeError, ValueError, RecursionError):
        raise ValueError("is no checkpoint of adamas, or damaged") from None
    if found != _FORMAT or version != _VERSION:
        raise ValueError(
            f"must be of format {_FORMAT!r}, version {_VERSION}, got {found!r}, {version!r}"
        )
    return dict(description)


def _verified_description(content: bytes) -> dict[str, Any]:
    """Return the metadata if every byte of the file is as it was written."""
    description = _description(content)
    place = content.find(_MARK) + len(_MARK)
    view = memoryview(content)
    checksum = hashlib.sha256(view[:place])
    checksum.update(_UNSEALED.encode())
    checksum.update(view[place + _DIGITS :])
    if description.get("checksum") != _MARK.decode() + checksum.hexdigest():
        raise ValueError("is truncated or damaged: the checksum does not fit the content")
    return description


def _state(description: dict[str, Any], content: bytes, with_param: bool) -> dict[str, Any]:
    """Put the arrays back into the state dictionary that they came from."""
    from safetensors import SafetensorError, deserialize

    entries = {}
    for plain in description["state"]["parameters"]:
        entries[plain["name"]] = {key: plain[key] for key in plain if key != "name"}
    try:
        arrays: list[tuple[str, dict[str, Any]]] = deserialize(content)  # type: ignore[no-untyped-call,unused-ignore]
    except SafetensorError as error:
        raise ValueError(f"is damaged: {error}") from error
    for key, array in arrays:
        name, _, kind = key.rpartition(".")
        if kind != "param" or with_param:
            entries[name][kind] = _array(array)
    if with_param and not all("param" in entry for entry in entries.values()):
        raise ValueError("must hold the parameters, or be loaded with parameters=False")
    return {**description["state"], "parameters": entries}


_DTYPES: dict[str, np.dtype[Any]] = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "I64": np.dtype(np.int64),
    "U16": np.dtype(np.uint16),
    "U8": np.dtype(np.uint8),
}


def _array(found: dict[str, Any]) -> FloatArray:
    code = found["dtype"]
    dtype = _bfloat16() if code == "BF16" else _DTYPES[code]
    array: FloatArray = np.frombuffer(found["data"], dtype).reshape(found["shape"])
    return array


def _bfloat16() -> np.dtype[Any]:
    """Return NumPy's bfloat16, or without ml_dtypes a type that fits no parameter."""
    try:
        from ml_dtypes import bfloat16
    except ImportError:
        return np.dtype("V2")
    dtype: np.dtype[Any] = np.dtype(bfloat16)
    return dtype


def _load(optimizer: Optimizer, state: dict[str, Any], manager: Any, saved: Any) -> None:
    """Load the optimizer and the manager, or neither."""
    if (manager is None) != (saved is None):
        wanted = "no loss-scale manager" if manager is None else "a loss-scale manager"
        raise ValueError(f"must hold {wanted}, as loss_scale_manager={manager!r} asks for")
    if manager is None:
        optimizer.load_state_dict(state)
        return
    before = manager.state_dict()
    try:
        manager.load_state_dict(saved)
        optimizer.load_state_dict(state)
    except BaseException:
        manager.load_state_dict(before)
        raise


# The file


def _replace(path: _Path, parts: Iterable[bytes | memoryview]) -> None:
    """Give a file new content, all at once and on the disk, or leave it alone."""
    target = Path(os.path.realpath(path))
    mode = _mode_to_keep(target)
    temporary = target.with_name(f".adamas-{secrets.token_hex(8)}.tmp")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
    try:
        with os.fdopen(descriptor, "wb") as file:
            if mode is not None:
                os.fchmod(file.fileno(), mode)
            for part in parts:
                file.write(part)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(target)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise
    _sync_folder(target.parent)


def _mode_to_keep(target: Path) -> int | None:
    """Return the permissions of the file that is to be replaced, or None if there is none.

    Raises
    ------
    OSError
        If the folder does not exist, or what is there is not a file that may be written.
    """
    target.parent.stat()
    try:
        found = target.stat()
    except FileNotFoundError:
        return None
    if not stat.S_ISREG(found.st_mode):
        raise FileExistsError(f"path must be a file or free, got {str(target)!r}")
    if not os.access(target, os.W_OK):
        raise PermissionError(f"path must be writable, got {str(target)!r}")
    return stat.S_IMODE(found.st_mode)


def _sync_folder(folder: Path) -> None:
    """Make a rename last through a power failure."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
