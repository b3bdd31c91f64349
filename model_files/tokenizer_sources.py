"""From what a model lies in to its tokenizer, wherever that is: in the metadata of a GGUF file, or in files beside the weights."""

from dairllm.model_files.containers import Container, Conventions
from dairllm.model_files.containers.distributed_llama import TOKENIZER
from dairllm.model_files.distributed_llama_tokenizer import read_distributed_llama_tokenizer
from dairllm.model_files.errors import UnsupportedModel
from dairllm.model_files.gguf_tokenizer import read_gguf_tokenizer
from dairllm.model_files.hugging_face_tokenizer import TOKENIZER_JSON, read_hugging_face_tokenizer, refuse_other_files
from dairllm.model_files.tokenizer import Tokenizer, TokenizerParts


def load_tokenizer(container: Container, assumed_pretokenizer: str | None = None) -> Tokenizer:
    """The tokenizer of a model.

    assumed_pretokenizer: name of the rules by which words are cut if a GGUF file names none, or none that are known.
    UnsupportedModel if it has no tokenizer or its kind is not known exactly, CorruptModelFile if it is damaged.
    """
    return Tokenizer(_parts(container, assumed_pretokenizer))


def _parts(container: Container, assumed_pretokenizer: str | None) -> TokenizerParts:
    if TOKENIZER_JSON in container.companions:
        return read_hugging_face_tokenizer(container)
    if TOKENIZER in container.companions:
        return read_distributed_llama_tokenizer(container.companions[TOKENIZER])
    if container.conventions is Conventions.TRANSFORMERS:
        raise refuse_other_files(container)
    if "tokenizer.ggml.tokens" not in container.metadata:
        raise UnsupportedModel(f"{container.path.name} has no tokenizer; the model takes and gives token ids")
    return read_gguf_tokenizer(container, assumed_pretokenizer)
