"""What a model is stored in: one way to look at all kinds of files and folders (`open_container`)."""

from dairllm.model_files.containers.container import Container, ContainerFile, Conventions, StoredTensor
from dairllm.model_files.containers.metadata import Metadata
from dairllm.model_files.containers.opening import open_container

__all__ = ["Container", "ContainerFile", "Conventions", "Metadata", "StoredTensor", "open_container"]
