"""Llama 1 to 3, Mistral without a sliding window, SmolLM and their kin, as llama.cpp's converter writes them.

The rows of q and k are permuted by the converter, so that rotary pairs are interleaved.
"""

from dairllm.model_files.gguf_decoder import PlainDecoder

ARCHITECTURE = PlainDecoder("llama", rope_interleaved=True)
