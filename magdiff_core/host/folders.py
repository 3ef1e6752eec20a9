"""Where weights lie: the `magdiff` model folder, and the small model inside the pack."""

from __future__ import annotations

from pathlib import Path

import folder_paths

MAGDIFF_FOLDER = "magdiff"
PACK_MODELS = Path(__file__).parents[2] / "models"


def register_folders() -> None:
    """Make `models/magdiff` and the pack's own `models` known to ComfyUI, beside paths of `extra_model_paths.yaml`."""
    folder_paths.add_model_folder_path(MAGDIFF_FOLDER, str(Path(folder_paths.models_dir, MAGDIFF_FOLDER)), is_default=True)
    folder_paths.add_model_folder_path(MAGDIFF_FOLDER, str(PACK_MODELS))
    paths, extensions = folder_paths.folder_names_and_paths[MAGDIFF_FOLDER]
    # A key that a yaml file made first has no extensions, which would list every file.
    folder_paths.folder_names_and_paths[MAGDIFF_FOLDER] = (paths, extensions | folder_paths.supported_pt_extensions)


def checkpoint_names() -> list[str]:
    """Names for Load MagDiff Checkpoint: files of `magdiff`, then those of `checkpoints` under other names."""
    names = folder_paths.get_filename_list(MAGDIFF_FOLDER)
    return names + [name for name in folder_paths.get_filename_list("checkpoints") if name not in names]


def find_checkpoint(name: str) -> str:
    """Path of a name from `checkpoint_names`. Raises FileNotFoundError naming file and folders."""
    path = folder_paths.get_full_path(MAGDIFF_FOLDER, name) or folder_paths.get_full_path("checkpoints", name)
    if path is None:
        folders = folder_paths.get_folder_paths(MAGDIFF_FOLDER) + folder_paths.get_folder_paths("checkpoints")
        raise FileNotFoundError(f"{name} is in none of: {', '.join(folders)}")
    return path


def new_file(name: str, example: str) -> Path:
    """Where a new file of this name is written: the first of the `magdiff` model folders, made if needed.

    Raises ValueError for a name that is no plain file name ending in .safetensors; the message shows `example`.
    """
    if Path(name).name != name or "\\" in name or not name.endswith(".safetensors") or name.startswith("."):
        raise ValueError(f'file_name is "{name}": give a plain name like {example}')
    folder = Path(folder_paths.get_folder_paths(MAGDIFF_FOLDER)[0])
    folder.mkdir(parents=True, exist_ok=True)
    return folder / name
