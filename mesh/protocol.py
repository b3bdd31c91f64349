"""Version of the protocol in protos/dairllm/v1 and of this software."""

from importlib.metadata import version

PROTOCOL_MAJOR = 1
"""Processes of different major versions refuse each other."""

PROTOCOL_MINOR = 1


def software_version() -> str:
    return version("dairllm")
