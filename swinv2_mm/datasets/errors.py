"""What is wrong with the files of a set of images."""

from __future__ import annotations


class ImageSetError(ValueError):
    """A file of the set is damaged, is something else than its name says, or cannot be had."""
