"""The ``das-gpu`` command: one module per subcommand, arguments, exit codes; no work of its own.

Results go to stdout, messages and progress to stderr. An option wins over an environment
variable (``DAS_GPU_`` and the option's name), which wins over a recipe file. Heavy libraries
are loaded by the command that needs them, so that ``--help`` answers at once.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from cyclopts import App, CycloptsError, Group, Parameter

from das_gpu.cli import console
from das_gpu.cli.bench import bench
from das_gpu.cli.completion import completion
from das_gpu.cli.doctor import doctor
from das_gpu.cli.environment import environment
from das_gpu.cli.export import export
from das_gpu.cli.extract import extract
from das_gpu.cli.index import index
from das_gpu.cli.info import info
from das_gpu.cli.manual import description
from das_gpu.cli.options import OutputOptions
from das_gpu.cli.pages import MAIN, PAGES
from das_gpu.cli.plan import plan
from das_gpu.cli.preview import preview
from das_gpu.cli.recipe import recipe
from das_gpu.cli.report import report
from das_gpu.cli.simulate import simulate
from das_gpu.cli.status import status
from das_gpu.cli.verify import verify
from das_gpu.errors import DasGpuError, UsageError

_HELP = "Turn a raw distributed-acoustic-sensing archive into machine-learning-ready images."
_COMMANDS = {
    "Images": (extract, plan, preview, recipe),
    "Recordings": (info, index, simulate),
    "Runs": (status, verify, report, export),
    "This machine": (doctor, bench, completion),
}
"""By the title that they have in the help."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code.

    Parameters
    ----------
    argv : sequence of str, optional
        Arguments without the program's name; those of this process by default.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        code = _run(arguments)
        sys.stdout.flush()
    except BrokenPipeError:
        return console.abandon_output()
    return code


def _run(arguments: list[str]) -> int:
    """Run a command; every failure ends in a message and its exit code."""
    try:
        command, bound, _ = application().parse_args(
            arguments, exit_on_error=False, print_error=False
        )
        output = bound.arguments.get("output") or OutputOptions()
        with console.speaking(quiet=output.quiet, verbose=output.verbose):
            result = command(*bound.args, **bound.kwargs)
    except BrokenPipeError:
        raise
    except DasGpuError as error:
        return console.fail(error, arguments)
    except CycloptsError as error:
        asked = " ".join(["das-gpu", *(error.command_chain or ())])
        text = f"{error} See {asked} --help."
        return console.fail(UsageError(" ".join(text.split())), arguments)
    except KeyboardInterrupt as error:
        return console.fail_interrupted(error, arguments)
    except Exception as error:  # noqa: BLE001 - the last stop: people are owed a message
        return console.fail_unexpected(error, arguments)
    return result if isinstance(result, int) else 0


def application() -> App:
    """All commands, with their options and their help."""
    app = App(
        name="das-gpu",
        help=_HELP,
        help_epilogue=MAIN.text(),
        help_format="plaintext",
        version=_version,
        config=environment,
        default_parameter=Parameter(negative=(), show_default=False),
        suppress_keyboard_interrupt=False,
    )
    for place, (title, commands) in enumerate(_COMMANDS.items()):
        group = Group(title, sort_key=place)
        for number, command in enumerate(commands):
            app.command(
                command,
                help=description(command),
                help_epilogue=PAGES[command.__name__].text(),
                group=group,
                sort_key=number,
            )
    help_ = Group("Help", sort_key=len(_COMMANDS))
    app["--help"].group = app["--version"].group = help_
    return app


def _version() -> str:
    from importlib.metadata import version

    return version("das-gpu")
