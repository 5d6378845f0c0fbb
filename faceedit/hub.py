"""Find, download, load and save a checkpoint folder.

A checkpoint is a folder with ``config.json`` (see `faceedit.config`), ``model.safetensors`` and
``README.md`` (its model card). It is on disk or on the Hugging Face Hub; the default one is inside
the package. Nothing here unpickles, and the network is used only when a Hub id is given.
"""

from __future__ import annotations

import importlib.resources
import logging
import os
import re
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from faceedit.config import ModelConfig
from faceedit.errors import (
    CheckpointError,
    CheckpointNotFoundError,
    ConfigError,
    DownloadError,
    OutputExistsError,
    UsageError,
)

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

__all__ = ["load_checkpoint", "load_module", "resolve", "save_checkpoint"]

logger = logging.getLogger(__name__)

CONFIG_FILE = "config.json"
TENSOR_FILE = "model.safetensors"
CARD_FILE = "README.md"
# What is downloaded of a Hub repository. Whatever else it holds, pickles above all, stays there.
_HUB_FILES = (CONFIG_FILE, TENSOR_FILE, CARD_FILE, "LICENSE", "NOTICE")

_HUB_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*", re.ASCII)


def resolve(
    name_or_path: str | os.PathLike[str] | None = None,
    *,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    local_files_only: bool = False,
    force_download: bool = False,
) -> Path:
    """Find a checkpoint's folder, downloading it if it is on the Hub and not cached yet.

    Args:
        name_or_path: None for the default checkpoint inside the package; a folder; or a Hub id
            "owner/name". A folder of that name goes before a Hub id.
        revision: branch, tag or commit of a Hub repository; None for its main branch.
        token: for private or gated repositories; None for the one stored by ``hf auth login``, if
            any, and False for none.
        cache_dir: where downloads are kept; None for huggingface_hub's own cache.
        local_files_only: take a Hub id from the cache only and touch no network.
        force_download: download again what is cached.

    Returns:
        The folder. That it holds a sound checkpoint is checked by `load_checkpoint`.

    Raises:
        CheckpointNotFoundError: there is no such folder, repository or revision, or it is not in
            the cache and the network was forbidden.
        DownloadError: the Hub could not be reached, or it refused.
        UsageError: the arguments contradict each other.
    """
    if local_files_only and force_download:
        raise UsageError("local_files_only and force_download exclude each other; pass one.")
    if name_or_path is None or os.path.isdir(name_or_path):
        if revision is not None:
            raise UsageError(
                f"revision={revision!r} has a meaning only for a Hub id, and "
                f"{'the default checkpoint' if name_or_path is None else str(name_or_path)!r} is "
                "a folder. Leave it out."
            )
        return _default_folder() if name_or_path is None else Path(name_or_path)
    if os.path.exists(name_or_path):
        raise CheckpointNotFoundError(
            f"{str(name_or_path)!r} is a file. Pass the folder that holds {CONFIG_FILE} and "
            f"{TENSOR_FILE}; `faceedit convert` makes one from a foreign checkpoint."
        )
    if not isinstance(name_or_path, str) or not _HUB_ID.fullmatch(name_or_path):
        raise CheckpointNotFoundError(
            f"There is no folder {str(name_or_path)!r}, and it is no Hub id of the form "
            "'owner/name' either. Check the path, or pass nothing for the default checkpoint."
        )
    return _download(name_or_path, revision, token, cache_dir, local_files_only, force_download)


def _default_folder() -> Path:
    folder = Path(str(importlib.resources.files("faceedit"))) / "weights" / "default"
    if not folder.is_dir():
        raise CheckpointNotFoundError(
            f"The default checkpoint is missing from the package ({str(folder)!r}). The "
            "installation is incomplete: install faceedit again, or pass a folder or a Hub id."
        )
    return folder


def _download(
    repo_id: str,
    revision: str | None,
    token: str | bool | None,
    cache_dir: str | os.PathLike[str] | None,
    local_files_only: bool,
    force_download: bool,
) -> Path:
    import huggingface_hub
    from huggingface_hub import errors as hub_errors

    where = f"{repo_id!r} (revision {revision or 'main'!r})"
    try:
        folder = huggingface_hub.snapshot_download(
            repo_id,
            revision=revision,
            token=token,
            cache_dir=cache_dir,
            local_files_only=local_files_only,
            force_download=force_download,
            allow_patterns=list(_HUB_FILES),
        )
    except hub_errors.GatedRepoError as error:
        raise DownloadError(
            f"{where} is gated. Ask for access on its page on the Hub, then pass token=... or run "
            "`hf auth login`."
        ) from error
    except hub_errors.RepositoryNotFoundError as error:
        raise CheckpointNotFoundError(
            f"There is neither a folder {repo_id!r} here nor a repository of that name on the Hub "
            "that you may see. Check the spelling; a private repository needs token=... or "
            "`hf auth login`."
        ) from error
    except hub_errors.RevisionNotFoundError as error:
        raise CheckpointNotFoundError(
            f"The Hub repository {repo_id!r} has no revision {revision!r}. Pass a branch, tag or "
            "commit that it has, or leave revision out."
        ) from error
    except hub_errors.LocalEntryNotFoundError as error:
        if local_files_only or huggingface_hub.constants.HF_HUB_OFFLINE:
            raise CheckpointNotFoundError(
                f"{where} is no folder here and not (or not wholly) in the cache, and the network "
                "is forbidden (local_files_only or HF_HUB_OFFLINE). Download it once with the "
                "network allowed."
            ) from error
        raise _download_error(where, error) from error
    except hub_errors.HFValidationError as error:
        raise CheckpointNotFoundError(
            f"There is no folder {repo_id!r}, and it is no possible Hub id either ({error})."
        ) from error
    except Exception as error:
        # Which exceptions a broken connection raises depends on the HTTP library that this release
        # of huggingface_hub is built on; to our callers they are all the same.
        raise _download_error(where, error) from error
    logger.info("checkpoint %s is in %s", where, folder)
    return Path(folder)


def _download_error(where: str, error: Exception) -> DownloadError:
    return DownloadError(
        f"{where} could not be downloaded: {error} Check the connection and try again; what is "
        "cached already can be used with local_files_only=True."
    )


def load_checkpoint(
    folder: str | os.PathLike[str],
) -> tuple[ModelConfig, dict[str, Tensor]]:
    """Read a checkpoint folder.

    Returns:
        The config, and the tensors by name, on the CPU, in the dtype in which they are stored.

    Raises:
        CheckpointNotFoundError: the folder or one of its two files is missing.
        CheckpointError: the tensors are truncated, corrupt or in no safetensors file.
        ConfigError: config.json is no JSON or not as `faceedit.config` wants it.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    folder = Path(folder)
    for name in (CONFIG_FILE, TENSOR_FILE):
        if not (folder / name).is_file():
            raise CheckpointNotFoundError(
                f"There is no {name} in {str(folder)!r}, so it is no faceedit checkpoint. Other "
                "formats, pickles among them, are brought into this one by `faceedit convert`."
            )
    config_path, tensor_path = folder / CONFIG_FILE, folder / TENSOR_FILE
    try:
        config = ModelConfig.from_json(config_path.read_text(encoding="utf-8"))
    except (ConfigError, UnicodeDecodeError) as error:
        raise ConfigError(f"{str(config_path)!r}: {error}") from error
    try:
        tensors = load_file(tensor_path)
    except (SafetensorError, ValueError) as error:
        raise CheckpointError(
            f"{str(tensor_path)!r} is truncated or corrupt ({error}). Get it again; for a Hub id, "
            "pass force_download=True."
        ) from error
    return config, tensors


def save_checkpoint(
    folder: str | os.PathLike[str],
    config: ModelConfig,
    tensors: Mapping[str, Tensor],
    readme: str,
    overwrite: bool = False,
    dtype: torch.dtype | None = None,
) -> Path:
    """Write a checkpoint folder.

    ``config.json`` is written last and, on overwriting, removed first: a folder in which writing
    broke off has none, and is never taken for a checkpoint.

    Args:
        folder: made if it is missing; files in it that are not the checkpoint's stay.
        config: goes to ``config.json``.
        tensors: go to ``model.safetensors``; those of floating point must be finite.
        readme: the model card, Markdown.
        overwrite: replace a checkpoint that is already in `folder`.
        dtype: in which floating-point tensors are stored, such as ``torch.float16``; None leaves
            each its own. Integer tensors always keep theirs.

    Returns:
        The folder.

    Raises:
        OutputExistsError: `folder` holds one of the three files and `overwrite` is false.
        CheckpointError: a tensor is not finite, or too large for `dtype`.
        ConfigError: `config` holds a value that JSON cannot.
        UsageError: `folder` is a file.
    """
    from safetensors.torch import save

    folder = Path(folder)
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"{str(folder)!r} is a file; a checkpoint is a folder. Choose another.")
    present = [name for name in (CONFIG_FILE, TENSOR_FILE, CARD_FILE) if (folder / name).exists()]
    if present and not overwrite:
        raise OutputExistsError(
            f"{str(folder)!r} already holds {', '.join(present)}. Choose another folder or pass "
            "overwrite=True."
        )
    config_text = config.to_json()
    stored = {name: _storable(name, tensor, dtype) for name, tensor in tensors.items()}

    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".saving-", dir=folder) as temporary_name:
        temporary = Path(temporary_name)
        # Not save_file, whose files only their owner may read, whatever the umask says.
        (temporary / TENSOR_FILE).write_bytes(save(stored, metadata={"format": "pt"}))
        (temporary / CARD_FILE).write_text(readme, encoding="utf-8")
        (temporary / CONFIG_FILE).write_text(config_text, encoding="utf-8")
        (folder / CONFIG_FILE).unlink(missing_ok=True)
        for name in (TENSOR_FILE, CARD_FILE, CONFIG_FILE):
            os.replace(temporary / name, folder / name)
    return folder


def _storable(name: str, tensor: Tensor, dtype: torch.dtype | None) -> Tensor:
    tensor = tensor.detach().cpu()
    if tensor.is_floating_point():
        if dtype is not None:
            tensor = tensor.to(dtype)
        if not bool(tensor.isfinite().all()):
            raise CheckpointError(
                f"Tensor {name!r} has NaN or infinite values as {tensor.dtype}. Mend it, or store "
                "it with dtype=torch.float32 if its values are too large."
            )
    # A copy, because safetensors refuses tensors that share memory, as tied weights do.
    return tensor.contiguous().clone()


def load_module(
    module: nn.Module,
    tensors: Mapping[str, Tensor],
    prefix: str = "",
    advice: str = "Its config.json and model.safetensors must come from the same save.",
) -> None:
    """Fill a module's parameters and buffers, all of them, and use up all that is meant for it.

    Args:
        module: takes the values in its own dtype and on its own device.
        tensors: of the whole checkpoint, by name.
        prefix: the module's tensors are those named ``prefix.<key of module.state_dict()>``; ""
            takes all tensors.
        advice: the last sentence of the error's message: what to do.

    Raises:
        CheckpointError: a key is missing, left over or of another shape. The module is unchanged.
    """
    start = f"{prefix}." if prefix else ""
    given = {key[len(start) :]: value for key, value in tensors.items() if key.startswith(start)}
    wanted = module.state_dict()
    misfits = [
        f"{start}{key} is {_kind(given[key])} and must be {_kind(wanted[key])}"
        for key in wanted
        if key in given and _kind(given[key]) != _kind(wanted[key])
    ]
    missing = [start + key for key in wanted if key not in given]
    extra = [start + key for key in given if key not in wanted]
    complaints = [
        f"{what}: {', '.join(names[:5])}" + (f" and {len(names) - 5} more" if names[5:] else "")
        for what, names in (("missing", missing), ("left over", extra), ("misfitting", misfits))
        if names
    ]
    if complaints:
        raise CheckpointError(
            f"The checkpoint does not fit {type(module).__name__}. {'; '.join(complaints)}. {advice}"
        )
    module.load_state_dict(given)


def _kind(tensor: Tensor) -> str:
    """Shape, and whether it counts or measures: copying floats into integers would truncate."""
    kind = "float" if tensor.is_floating_point() else "integer"
    return f"{kind} {tuple(tensor.shape)}"
