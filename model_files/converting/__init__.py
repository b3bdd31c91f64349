"""Writing a model as one GGUF file, with the names, keys and layouts that llama.cpp reads."""
