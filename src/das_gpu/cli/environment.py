"""Options that environment variables fill: ``--tile-seconds`` from ``DAS_GPU_TILE_SECONDS``."""

from __future__ import annotations

from cyclopts import App, ArgumentCollection, Token
from cyclopts.config import Env

MARKER = "--from-environment"
"""The hidden option that names those which the environment filled."""
_VARIABLES = Env("DAS_GPU_", command=False, show=False)


def environment(app: App, commands: tuple[str, ...], arguments: ArgumentCollection) -> None:
    """Fill options that were not given from the environment, and mark them.

    The mark lets a setting given by ``--set`` win over the environment as a flag does. What
    is no option, SOURCE and OUT, is never taken from the environment, nor are options of
    `simulate`: its ``--channels`` is another thing than that of all other commands.
    """
    if commands == ("simulate",):
        return
    _VARIABLES(app, commands, arguments)
    marker, filled = None, []
    for argument in arguments:
        if argument.name == MARKER:
            marker = argument
        if argument.name == MARKER or not argument.name.startswith("--"):
            argument.tokens[:] = [each for each in argument.tokens if each.source != "env"]
        elif any(each.source == "env" for each in argument.tokens):
            filled.append(argument.name)
    if marker is not None:
        for index, name in enumerate(filled):
            marker.append(Token(keyword=MARKER, value=name, source="env", index=index))
