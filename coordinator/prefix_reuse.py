"""Whose sequences share what is computed of prompts that begin alike (see `engine/prefixes`)."""

from enum import StrEnum


class PrefixReuse(StrEnum):
    """How long a prompt takes tells whether another one began as it does."""

    EVERYONE = "everyone"
    CLIENT = "client"
    OFF = "off"
