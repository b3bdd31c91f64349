"""llama.cpp as it decodes a file that is larger than its memory: mapped, so that the system reads what it touches, again and again."""

from pathlib import Path

from limited_memory import drop_from_page_cache, memory_limit
from peer import last_json

PROGRAM = """
import ctypes, json, sys, time
import llama_cpp as peer

path, threads, warm_up, tokens = sys.argv[1], *map(int, sys.argv[2:5])
peer.llama_backend_init()
params = peer.llama_model_default_params()
params.use_mmap = True
params.use_extra_bufts = False   # it would make a second copy, packed anew, of all that it maps
model = peer.llama_model_load_from_file(path.encode(), params)
params = peer.llama_context_default_params()
params.n_ctx, params.n_batch, params.n_ubatch = 256, 32, 32
params.n_threads = params.n_threads_batch = threads
context = peer.llama_init_from_model(model, params)
times = []
for token in range(5, 5 + warm_up + tokens):
    array = (ctypes.c_int32 * 1)(token)
    assert peer.llama_decode(context, peer.llama_batch_get_one(array, 1)) == 0
    peer.llama_synchronize(context)
    times.append(time.perf_counter())
print(json.dumps({"tok_s": tokens / (times[-1] - times[warm_up - 1])}))
"""


def mapped_tok_s(python: Path, model: Path, threads: int, limit_bytes: int, warm_up: int, tokens: int) -> float:
    """Within a memory cgroup of this limit, nothing of the file in the page cache before."""
    drop_from_page_cache(model)
    with memory_limit(limit_bytes) as limit:
        command = [*limit.prefix, str(python), "-c", PROGRAM, str(model), str(threads), str(warm_up), str(tokens)]
        return last_json(command)["tok_s"]
