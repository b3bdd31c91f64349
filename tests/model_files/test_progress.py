"""How far a long read is, for logs."""

from dairllm.model_files.progress import LINES_EVERY_S, progress_lines


def test_a_log_hears_of_it_every_few_seconds() -> None:
    said: list[str] = []
    now_s = 0.0
    report = progress_lines(said.append, lambda: now_s)
    for percent in range(101):
        report("Hashing a.gguf", percent * 2**30 // 100, 2**30)
        now_s += LINES_EVERY_S / 8
    assert said[:2] == ["Hashing a.gguf: 0.08 of 1.00 GiB, 8%", "Hashing a.gguf: 0.16 of 1.00 GiB, 16%"]
    assert len(said) == 12


def test_what_is_quick_is_not_told() -> None:
    said: list[str] = []
    report = progress_lines(said.append, lambda: 0.0)
    for done in (0, 50, 100):
        report("Hashing a.gguf", done, 100)
    assert said == []
