"""The recipes of ``configs/``, which the package brings: ``--config reach`` needs no source tree."""

from __future__ import annotations

from pathlib import Path

_PACKAGE = Path(__file__).parents[1]


def recipe_file(path: str | Path) -> Path:
    """The YAML file that is meant.

    Args:
        path: A file, or the name of a recipe of the package such as ``"reach"``. A file of that name comes first.

    Raises:
        FileNotFoundError: There is neither; the message names the recipe that may have been meant.
    """
    if Path(path).is_file():
        return Path(path)
    recipes = _recipes()
    if str(path) in recipes:
        return recipes[str(path)]
    if (name := Path(path).stem) in recipes:
        raise FileNotFoundError(f"no configuration file at {path}; the recipe of the package is --config {name}")
    if Path(path).name == str(path) and not Path(path).suffix:
        raise FileNotFoundError(
            f"no configuration file at {path}, and the recipes of the package are {', '.join(recipes)}"
        )
    raise FileNotFoundError(f"no configuration file at {path}")


def _recipes() -> dict[str, Path]:
    """By name. A wheel holds them in the package, a source tree beside it."""
    packed, beside = _PACKAGE / "configs", _PACKAGE.parent / "configs"
    return {file.stem: file for file in sorted((packed if packed.is_dir() else beside).glob("*.yaml"))}
