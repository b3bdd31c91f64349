"""Everything that can be wrong with a model, its file, its name or its template.

ModelFileError(ValueError)
├── UnsupportedModel    a sound file of a kind that is not implemented: architecture, tensor type, tokenizer, rope scaling
├── CorruptModelFile    a file, or a manifest received from elsewhere, that contradicts itself, its digest or its format
├── UnknownModelName    neither a readable file nor a name that can be fetched
├── ModelFetchError     a known model that could not be downloaded, verified or stored
├── NoCacheFolder       there is no place to keep files in
├── UnencodableText     a text on which the model's tokenizer fails
├── InvalidTemplate     a chat template that does not compile, fails on these messages, or asks for too much work
└── RendererUnavailable the process that renders chat templates cannot be started

Each message is one sentence that names the thing, the value and what was expected.
"""


class ModelFileError(ValueError):
    """Root of the tree; never raised itself. The sentence may quote files and paths: what cannot be shown in it is written as in repr."""

    def __init__(self, sentence: str) -> None:
        super().__init__("".join(one if one.isprintable() else repr(one)[1:-1] for one in sentence))


class UnsupportedModel(ModelFileError):
    """The file is sound, but what it describes is not implemented."""


class CorruptModelFile(ModelFileError):
    """The file or manifest is damaged, truncated, or contradicts itself."""


class UnknownModelName(ModelFileError):
    """The name is neither a readable file nor one of the known models."""


class ModelFetchError(ModelFileError):
    """A known model could not be downloaded, verified or stored."""


class NoCacheFolder(ModelFileError):
    """The user has no home, and no other folder is named."""


class UnencodableText(ModelFileError):
    """The model's tokenizer fails on this text."""


class InvalidTemplate(ModelFileError):
    """The chat template does not compile, refuses the messages, or exceeds its limits."""


class RendererUnavailable(ModelFileError):
    """The process that renders chat templates cannot be started; maybe later."""
