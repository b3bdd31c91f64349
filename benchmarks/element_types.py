"""What quantised weights cost in quality, beside llama.cpp on the same files: perplexity, and the distance from the model in float32.

    .venv/bin/python benchmarks/element_types.py --float model-f16.gguf --model model-q4_k_m.gguf [--model ...] [--peer-python PYTHON]

Teacher-forced, window by window, each from an empty context: the distributions of the next token over the full vocabulary. The
float model has the weights of `--float` as float32, so that its activations are not quantised; the wire rounds nothing. Nothing is timed.

- perplexity: exp of the mean negative log-probability of the tokens that come next in the text.
- KL: mean over all positions of KL(float || quantised), in nats.

llama.cpp is not part of this project: --peer-python names a Python that has the package llama-cpp-python.
"""

import contextlib
import json
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, NamedTuple

import numpy as np
import typer
from command import run, show
from loaded_model import LoadedModel, Text, block_table, documents, load, with_float_weights
from quality import Cost, Rows, Sums, head_logits, log_probs
from rich.table import Table

from dairllm.kernels_pyx import StageSlice
from dairllm.mesh.errors import PeerUnreachable
from dairllm.model_files.memory import HEAD_ROWS
from dairllm.shard_service.forward.building import StageParts

PEER_PROGRAM = """
import ctypes, json, sys
import llama_cpp as peer

path, texts = sys.argv[1], json.load(open(sys.argv[2]))
longest = max(map(len, texts))
peer.llama_backend_init()
model = peer.llama_model_load_from_file(path.encode(), peer.llama_model_default_params())
params = peer.llama_context_default_params()
params.n_ctx = params.n_batch = params.n_ubatch = longest
params.n_threads = params.n_threads_batch = 2
context = peer.llama_init_from_model(model, params)
width = peer.llama_vocab_n_tokens(peer.llama_model_get_vocab(model))
for ids in texts:
    peer.llama_memory_clear(peer.llama_get_memory(context), True)
    batch = peer.llama_batch_init(len(ids), 0, 1)
    batch.n_tokens = len(ids)
    for i, one in enumerate(ids):
        batch.token[i], batch.pos[i], batch.n_seq_id[i], batch.logits[i] = one, i, 1, 1
        batch.seq_id[i][0] = 0
    assert peer.llama_decode(context, batch) == 0
    for i in range(len(ids)):
        sys.stdout.buffer.write(ctypes.string_at(peer.llama_get_logits_ith(context, i), 4 * width))
    peer.llama_batch_free(batch)
"""


class OwnLogits:
    def __init__(self, model: LoadedModel) -> None:
        self._model = model
        self._parts: StageParts = model.stage(range(model.spec.num_layers + 2))

    def hidden(self, text: Text) -> Rows:
        """What the head sees."""
        span, ids, body = range(self._model.spec.num_layers + 2), text.token_ids, self._parts.body
        assert body is not None, "a whole model has layers"
        return body.run(self._model.kv_caches(span, len(ids)), ids, [StageSlice(len(ids), 0, block_table(len(ids)))])

    def of(self, hidden: Rows) -> Iterator[Rows]:
        """In chunks of HEAD_ROWS rows."""
        for first in range(0, len(hidden), HEAD_ROWS):
            yield head_logits(self._parts, hidden[first : first + HEAD_ROWS])


@contextlib.contextmanager
def peer_logits(python: Path, model: Path, texts: Sequence[Text], width: int) -> Iterator[Iterator[Rows]]:
    """The same chunks, text after text. Raises PeerUnreachable if there are fewer."""
    with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
        json.dump([text.token_ids.tolist() for text in texts], file)
        file.flush()
        command = [str(python), "-c", PEER_PROGRAM, str(model), file.name]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
            assert process.stdout is not None, "it was asked for"
            stream = process.stdout

            def chunks() -> Iterator[Rows]:
                for text in texts:
                    for first in range(0, len(text.token_ids), HEAD_ROWS):
                        rows = min(HEAD_ROWS, len(text.token_ids) - first)
                        data = stream.read(4 * rows * width)
                        if len(data) < 4 * rows * width:
                            raise PeerUnreachable(f"llama.cpp ended with status {process.wait()} on {model}")
                        yield np.frombuffer(data, np.float32).reshape(rows, width)

            try:
                yield chunks()
            finally:
                process.kill()


class Result(NamedTuple):
    file: str
    own: Cost
    peer: Cost | None


def compare(
    exact: OwnLogits, path: Path, texts: Sequence[Text], exact_hidden: Sequence[Rows], window: int, peer_python: Path | None
) -> Result:
    """exact_hidden: what the float model's head sees of each text."""
    model = load(str(path), window)
    own, own_sums, peer_sums = OwnLogits(model), Sums(), Sums()
    width = model.spec.vocab_size
    with contextlib.ExitStack() as stack:
        theirs = None if peer_python is None else stack.enter_context(peer_logits(peer_python, path, texts, width))
        for text, rows in zip(texts, exact_hidden, strict=True):
            first = 0
            for exact_logits, own_logits in zip(exact.of(rows), own.of(own.hidden(text)), strict=True):
                expected = log_probs(exact_logits)
                next_ids = text.token_ids[first + 1 : first + 1 + len(expected)]
                own_sums.add(expected, log_probs(own_logits), next_ids)
                if theirs is not None:
                    peer_sums.add(expected, log_probs(next(theirs)), next_ids)
                first += len(expected)
    return Result(path.name, Cost.of(own_sums), None if peer_python is None else Cost.of(peer_sums))


def element_types(
    float_model: Annotated[Path, typer.Option("--float", exists=True, help="The model in F16, BF16 or F32.")],
    model: Annotated[list[Path], typer.Option(exists=True, help="A quantised file of it; repeatable.")],
    peer_python: Annotated[Path | None, typer.Option(help="A Python with the package llama-cpp-python.")] = None,
    tokens: Annotated[int, typer.Option(min=2)] = 20_480,
    window: Annotated[int, typer.Option(min=2, max=512)] = 512,
    text: Annotated[
        list[Path] | None, typer.Option(exists=True, help="Text to read instead of the project's documents; repeatable.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object for each file as soon as it is done.")] = False,
) -> None:
    """Measure what quantised weights cost in quality."""
    reference = load(str(float_model), window)
    texts = documents(reference.path, tokens, window, text or ())
    exact = OwnLogits(with_float_weights(reference))
    exact_hidden = [exact.hidden(text) for text in texts]
    title = f"{tokens} tokens in windows of {window}"
    table = Table("file", title=title, title_justify="left", box=None, header_style="bold", pad_edge=False)
    for name in ("perplexity", "llama.cpp's", "ratio", "KL, nats", "llama.cpp's", "same best", "llama.cpp's"):
        table.add_column(name, justify="right")
    for path in model:
        result = compare(exact, path, texts, exact_hidden, window, peer_python)
        own, peer = result.own, result.peer
        if as_json:
            print(json.dumps({"file": result.file, "own": asdict(own), "peer": peer and asdict(peer)}), flush=True)
        absent = ("", "", "", "")
        peer_cells = (
            absent
            if peer is None
            else (f"{peer.perplexity:.4f}", f"{own.perplexity / peer.perplexity - 1:+.2%}", f"{peer.kl_nats:.5f}", f"{peer.same_best:.2%}")
        )
        table.add_row(
            *(result.file, f"{own.perplexity:.4f}", peer_cells[0], peer_cells[1]),
            *(f"{own.kl_nats:.5f}", peer_cells[2], f"{own.same_best:.2%}", peer_cells[3]),
        )
    if not as_json:
        show(table)


if __name__ == "__main__":
    run(element_types)
