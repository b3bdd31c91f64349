"""Qwen 2 and 2.5, dense ones, as llama.cpp's converter writes them: rotary pairs are (i, i + dim/2), and q, k and v always have biases."""

from dairllm.model_files.dense_decoder import Biases
from dairllm.model_files.gguf_decoder import PlainDecoder

ARCHITECTURE = PlainDecoder("qwen2", rope_interleaved=False, biases=Biases(q=True, k=True, v=True))
