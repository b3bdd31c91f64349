"""Greedy continuations of a GGUF file by llama.cpp, with log-probabilities and margins; by a Python that has llama-cpp-python.

python tests/data/make_peer_golden.py gemma-3-270m-q4_k_m.gguf tests/data/gemma3-270m.json
"""

import ctypes
import hashlib
import importlib
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

peer: Any = importlib.import_module("llama_cpp")

NUM_TOKENS = 48
PROMPTS = {
    "capital": "The capital of France is",
    "list": "The days of the week are: Monday, Tuesday,",
    "story": "Once upon a time, in a small village by the sea, there lived an old fisherman who",
    "code": "def fibonacci(n: int) -> int:\n    ",
    "german": "Die vier Jahreszeiten heißen Frühling,",
    "figures": "Water boils at 100 degrees Celsius and freezes at",
}


class Peer:
    def __init__(self, path: Path) -> None:
        peer.llama_backend_init()
        self._model = peer.llama_model_load_from_file(str(path).encode(), peer.llama_model_default_params())
        params = peer.llama_context_default_params()
        params.n_ctx = params.n_batch = params.n_ubatch = 512
        params.n_threads = params.n_threads_batch = 2
        self._context = peer.llama_init_from_model(self._model, params)
        self._vocabulary = peer.llama_model_get_vocab(self._model)
        self._width = peer.llama_vocab_n_tokens(self._vocabulary)

    def tokens(self, text: str) -> list[int]:
        data = text.encode()
        ids = (ctypes.c_int32 * (len(data) + 8))()
        count = peer.llama_tokenize(self._vocabulary, data, len(data), ids, len(ids), True, False)
        return list(ids[:count])

    def text(self, ids: list[int]) -> str:
        pieces = []
        for one in ids:
            buffer = ctypes.create_string_buffer(256)
            size = peer.llama_token_to_piece(self._vocabulary, one, buffer, len(buffer), 0, True)
            pieces.append(buffer.raw[:size])
        return b"".join(pieces).decode(errors="replace")

    def log_probs(self, ids: list[int]) -> Any:
        """Of the token after these, which follow what was given since `begin`."""
        array = (ctypes.c_int32 * len(ids))(*ids)
        assert peer.llama_decode(self._context, peer.llama_batch_get_one(array, len(ids))) == 0
        logits = np.ctypeslib.as_array(peer.llama_get_logits_ith(self._context, -1), (self._width,)).astype(np.float64)
        logits -= logits.max()
        return logits - np.log(np.exp(logits).sum())

    def begin(self) -> None:
        peer.llama_memory_clear(peer.llama_get_memory(self._context), True)

    def case(self, name: str, prompt: str) -> dict[str, Any]:
        self.begin()
        ids = self.tokens(prompt)
        case: dict[str, Any] = {"name": name, "prompt": prompt, "prompt_ids": ids, "generated_ids": [], "logprob": [], "margin": []}
        given = ids
        for _ in range(NUM_TOKENS):
            values = self.log_probs(given)
            second, best = np.argsort(values)[-2:]
            case["generated_ids"].append(int(best))
            case["logprob"].append(round(float(values[best]), 5))
            case["margin"].append(round(float(values[best] - values[second]), 5))
            given = [int(best)]
        case["text"] = self.text(case["generated_ids"])
        return case


def main() -> None:
    model, target = map(Path, sys.argv[1:])
    source = Peer(model)
    meta = {"file": model.name, "sha256": hashlib.sha256(model.read_bytes()).hexdigest(), "by": f"llama-cpp-python {peer.__version__}"}
    cases = [source.case(name, prompt) for name, prompt in PROMPTS.items()]
    target.write_text(json.dumps({"meta": meta, "cases": cases}, ensure_ascii=False, indent=None) + "\n")


if __name__ == "__main__":
    main()
