"""`dairllm models convert`."""

from pathlib import Path

from dairllm.model_files.containers import open_container
from tests.instruments.commands import RunDairllm
from tests.instruments.golden import TINY


def test_convert_writes_one_file_and_tells_what_it_lacks(dairllm: RunDairllm, tmp_path: Path) -> None:
    output = tmp_path / "out.gguf"
    done = dairllm("models", "convert", str(TINY / "llama"), str(output), "--type", "q8_0")
    assert done.returncode == 0, done.stderr
    assert f"{output} is written" in done.stdout
    assert "the file has no tokenizer" in done.stderr
    assert open_container(output).tensors["blk.0.attn_q.weight"].block_format.name == "Q8_0"
    again = dairllm("models", "convert", str(TINY / "llama"), str(output))
    assert again.returncode != 0
    assert "exists already" in again.stderr
    unknown = dairllm("models", "convert", str(TINY / "llama"), str(tmp_path / "other.gguf"), "--type", "q9")
    assert "expected one of F32, F16, BF16" in unknown.stderr
