"""What this machine is and can do: its memory, its speed, and what `dairllm doctor` says of it."""
