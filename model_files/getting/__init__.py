"""From what people write behind `--model` to files on this machine."""
