"""The exception for mistakes that the user can correct."""

from __future__ import annotations


class SetupError(Exception):
    """Something outside the program is wrong: a path, an option, an annotation file, a missing GPU.

    The message is a sentence that names the value, what was expected and what to do. The tools print it without a stack
    trace and stop with exit code 2.
    """
