"""``das-gpu completion``: let the Tab key complete commands, options, choices and files."""

from __future__ import annotations

from typing import Annotated, Literal

from cyclopts import Parameter

from das_gpu.cli import console
from das_gpu.cli.options import OutputOptions

_NAME = "das-gpu"

_BASH = r"""
# Bash takes ":" and "=" for ends of words, and addresses and times hold both: take words as they
# were typed, and give back only what stands behind the last of these.
_das_gpu_typed() {
  local word IFS=$' \t\n'
  local -a typed
  read -a typed <<< "${COMP_LINE:0:COMP_POINT}"
  [[ "${COMP_LINE:0:COMP_POINT}" == *[[:space:]] ]] && typed+=("")
  COMP_WORDS=()
  for word in "${typed[@]}"; do
    if [[ "$word" == --*=* ]]; then
      COMP_WORDS+=("${word%%=*}" "=" "${word#*=}")
    else
      COMP_WORDS+=("$word")
    fi
  done
  COMP_CWORD=$(( ${#COMP_WORDS[@]} - 1 ))
  word="${COMP_WORDS[COMP_CWORD]}"
  IFS=$'\n'
  _das_gpu
  COMPREPLY=("${COMPREPLY[@]#"${word%"${word##*[:=]}"}"}")
}
complete -o filenames -F _das_gpu_typed das-gpu
"""
_ZSH = r"""
if [[ ${funcstack[1]} == _* ]]; then
  _cyclopts_das-gpu "$@"
else
  compdef _cyclopts_das-gpu das-gpu
fi
"""
"""A file among zsh's functions completes at once; one that is sourced registers itself."""


def completion(
    shell: Annotated[
        Literal["bash", "zsh", "fish"], Parameter(help="The shell that is to read it.")
    ],
    /,
    *,
    output: OutputOptions | None = None,  # noqa: ARG001 - every command has the same
) -> int:
    """Print what lets a shell complete commands, options and files.

    The script holds all commands, options, choices and places for files: nothing is started when
    Tab is pressed. Print it anew when das-gpu is updated.
    """
    from das_gpu.cli import application

    script = application().generate_completion(prog_name=_NAME, shell=shell)
    console.write(script + {"bash": _BASH, "zsh": _ZSH, "fish": ""}[shell])
    return 0
