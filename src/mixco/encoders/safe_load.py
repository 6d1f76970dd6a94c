"""Read files of torch.save without running any code in them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.serialization import get_unsafe_globals_in_checkpoint, safe_globals

from mixco.runtime.errors import UserError

# Types that trainers save beside the weights: settings, numbers, paths, modules. None of them is needed,
# so a placeholder is built for each. All other types are refused.
PACKAGES = (
    *("torch.nn.", "torchvision.", "timm.", "lightly.", "lightly_train."),
    *("pytorch_lightning.", "lightning.", "lightning_fabric.", "omegaconf."),
)
TYPES = (
    *("argparse.Namespace", "functools.partial", "typing.Any", "collections.defaultdict"),
    *("datetime.datetime", "datetime.timedelta"),
    *("numpy.dtype", "numpy.ndarray"),
    *("numpy.core.multiarray.scalar", "numpy.core.multiarray._reconstruct"),
    *("numpy._core.multiarray.scalar", "numpy._core.multiarray._reconstruct"),
    *("pathlib.Path", "pathlib.PosixPath", "pathlib.WindowsPath"),
    *("pathlib._local.Path", "pathlib._local.PosixPath", "pathlib._local.WindowsPath"),
)


class Placeholder:
    """Stands for an object that is not built; takes any arguments and does nothing."""

    stands_for = ""
    """The name of the object's type."""

    def __init__(self, *_: Any, **__: Any) -> None: ...

    def __setstate__(self, state: Any) -> None: ...


def _placeholder(name: str) -> type[Placeholder]:
    return type("Placeholder", (Placeholder,), {"stands_for": name})


def _empty_dict(*_: Any) -> dict[Any, Any]:
    """Stands for a defaultdict; its items follow it in the file."""
    return {}


def safe_load(path: Path) -> Any:
    """The content of a torch.save file: tensors, numbers, texts, and lists and dicts of them.

    Loads with weights_only=True, with a placeholder for each object of the types above. Raises UserError
    for objects of other types, and torch's errors for a damaged file.
    """
    try:
        with path.open("rb") as file:
            found = get_unsafe_globals_in_checkpoint(file)
    except ValueError:  # the format before torch 1.6, whose types show only on loading
        found = []
    refused = sorted(n for n in found if n not in TYPES and not n.startswith(PACKAGES))
    if refused:
        raise _refusal(path, ", ".join(refused[:3]))
    stand_ins: list[Callable[..., Any] | tuple[Callable[..., Any], str]] = [
        (_empty_dict if name == "collections.defaultdict" else _placeholder(name), name)
        for name in {*found, *TYPES}
    ]
    # By its path torch would choose a format by the name.
    with safe_globals(stand_ins), path.open("rb") as file:
        try:
            return torch.load(file, map_location="cpu", weights_only=True)
        except Exception as error:
            name = str(error).partition("GLOBAL ")[2].split()[:1]
            if name:
                raise _refusal(path, name[0]) from None
            raise


def _refusal(path: Path, names: str) -> UserError:
    return UserError(
        f"{path}: it holds more than weights ({names}), and loading that could run code of its author. "
        "If you trust it, save its weights alone where it was made, for instance by "
        f"torch.save(torch.load({path.name!r}, weights_only=False)['state_dict'], 'weights.pt'), with "
        ".state_dict() instead of ['state_dict'] where the network itself was saved"
    )
