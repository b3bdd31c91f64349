"""Commands of `dairllm models` about models on this machine's disk: entry points of the group `dairllm.models`."""
