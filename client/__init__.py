"""The `dairllm` command, and a small client for Python programs."""

import dairllm.mesh  # noqa: F401  before gRPC
from dairllm.client.client import Answer, Client, Finish, Message, Model, TokenChoice

__all__ = ["Answer", "Client", "Finish", "Message", "Model", "TokenChoice"]
