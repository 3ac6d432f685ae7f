"""``das-gpu recipe``: print a recipe."""

from __future__ import annotations

from das_gpu.cli import console
from das_gpu.cli.options import OutputOptions, RecipeOptions


def recipe(*, options: RecipeOptions | None = None, output: OutputOptions | None = None) -> int:
    """Print a recipe: what preset, file and options come to, as TOML.

    Every setting is in it, with its value. It is a file for --config; what cannot work at any
    sampling rate is refused.
    """
    found = (options or RecipeOptions()).recipe()
    if (output or OutputOptions()).json:
        facts = {"recipe": found.model_dump(mode="json"), "digest": found.digest}
        console.write_json({**facts, "exit_code": 0})
    else:
        console.write(found.to_toml())
    return 0
