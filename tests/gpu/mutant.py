"""What a mutant is: a program with one fault, and the tests that should show it."""

from __future__ import annotations

from dataclasses import dataclass

BARRIER = "\n    __syncthreads();"
LOOP_BARRIER = "\n        __syncthreads();"
WARP_BARRIER = "\n        __syncwarp();"


@dataclass(frozen=True)
class Mutant:
    """A program with one fault.

    Attributes
    ----------
    name : str
        Its own among all mutants.
    file : str
        The file that is changed, from the repository's root.
    old, new : str
        The text that is replaced, and what takes its place.
    tests : tuple of str
        What pytest is told to run: the smallest choice that should fail.
    argument : str
        Why it may survive: why the program is still right, or why nothing here can tell.
    begin : int or None
        Where ``old`` begins; None where the file holds it once.
    """

    name: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]
    argument: str = ""
    begin: int | None = None

    def applied(self, text: str) -> str:
        """The file's text with the fault in it.

        Raises
        ------
        ValueError
            The text is not there, or not once where it must be.
        """
        begin = self.begin
        if begin is None:
            if text.count(self.old) != 1:
                times = text.count(self.old)
                raise ValueError(f"{self.name}: {self.file} has {self.old!r} {times} times")
            begin = text.index(self.old)
        if not text.startswith(self.old, begin):
            raise ValueError(f"{self.name}: {self.file} has no {self.old!r} at {begin}")
        return text[:begin] + self.new + text[begin + len(self.old) :]


def replaced(
    name: str, file: str, old: str, new: str, tests: tuple[str, ...], argument: str = ""
) -> Mutant:
    """A mutant of a file in ``kernels/``."""
    return Mutant(name, f"kernels/{file}", old, new, tests, argument)


def without(
    name: str,
    file: str,
    text: str,
    tests: tuple[str, ...],
    dropped: str = "",
    argument: str = "",
) -> Mutant:
    """A mutant of a file in ``kernels/`` that lacks ``dropped`` in ``text``, or all of ``text``.

    Raises
    ------
    ValueError
        ``text`` does not hold ``dropped`` once.
    """
    if dropped and text.count(dropped) != 1:
        raise ValueError(f"{name}: {dropped!r} is not once in {text!r}")
    return replaced(name, file, text, text.replace(dropped or text, ""), tests, argument)
