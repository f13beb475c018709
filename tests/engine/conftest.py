"""A tiny generated set and the quickstart configs on it."""

from quickstarts import *  # noqa: F403
