"""``das-gpu recipe``: print a recipe."""

from __future__ import annotations

from das_gpu.cli import console
from das_gpu.cli.options import OutputOptions, RecipeOptions


def recipe(*, options: RecipeOptions | None = None, output: OutputOptions | None = None) -> int:
    """Print the recipe that preset, file and options come to, as TOML.

    Example: das-gpu recipe --preset notebook --low 10 > my-recipe.toml
    """
    found = (options or RecipeOptions()).recipe()
    if (output or OutputOptions()).json:
        console.write_json({"recipe": found.model_dump(mode="json"), "digest": found.digest})
    else:
        console.write(found.to_toml())
    return 0
