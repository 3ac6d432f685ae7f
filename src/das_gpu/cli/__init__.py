"""The ``das-gpu`` command: one module per subcommand, arguments, exit codes; no work of its own.

Results go to stdout, messages and progress to stderr. An option wins over an environment
variable (``DAS_GPU_`` and the option's name), which wins over a recipe file. Heavy libraries
are loaded by the command that needs them, so that ``--help`` answers at once.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from cyclopts import App, CycloptsError, Parameter

from das_gpu.cli import console
from das_gpu.cli.bench import bench
from das_gpu.cli.doctor import doctor
from das_gpu.cli.environment import environment
from das_gpu.cli.export import export
from das_gpu.cli.extract import extract
from das_gpu.cli.index import index
from das_gpu.cli.info import info
from das_gpu.cli.plan import plan
from das_gpu.cli.preview import preview
from das_gpu.cli.recipe import recipe
from das_gpu.cli.report import report
from das_gpu.cli.simulate import simulate
from das_gpu.cli.status import status
from das_gpu.cli.verify import verify
from das_gpu.errors import DasGpuError, UsageError

_HELP = "Turn a raw distributed-acoustic-sensing archive into machine-learning-ready images."
_EPILOGUE = (
    "Try it: das-gpu extract demo: images\n\n"
    "Every option but those of simulate can be given as an environment variable too: "
    "--tile-seconds as DAS_GPU_TILE_SECONDS.\n\n"
    "Exit codes: 0 all delivered; 1 unexpected error; 2 usage or recipe; 3 some tiles missing, "
    "corrupt or in error, or (bench) backends that disagree; 4 source; 5 access denied; 6 "
    "destination; 10 not finished yet (status, verify); 11 destination in use; 12 damaged "
    "(verify); 130 interrupted."
)


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
        result = _app()(
            arguments, exit_on_error=False, print_error=False, result_action="return_value"
        )
    except BrokenPipeError:
        raise
    except DasGpuError as error:
        return console.fail(error, arguments)
    except CycloptsError as error:
        command = " ".join(["das-gpu", *(error.command_chain or ())])
        text = f"{error} See {command} --help."
        return console.fail(UsageError(" ".join(text.split())), arguments)
    except KeyboardInterrupt as error:
        return console.fail_interrupted(error, arguments)
    except Exception as error:  # noqa: BLE001 - the last stop: people are owed a message
        return console.fail_unexpected(error, arguments)
    return result if isinstance(result, int) else 0


def _app() -> App:
    app = App(
        name="das-gpu",
        help=_HELP,
        help_epilogue=_EPILOGUE,
        help_format="plaintext",
        version=_version,
        config=environment,
        default_parameter=Parameter(negative=(), show_default=False),
        suppress_keyboard_interrupt=False,
    )
    reading = (extract, index, info, plan, preview, recipe)
    for command in (*reading, status, verify, report, export, bench, simulate, doctor):
        app.command(command, help_epilogue="")
    return app


def _version() -> str:
    from importlib.metadata import version

    return version("das-gpu")
