"""However a text is cut into chunks, what comes out is the text up to the first stop string."""

import time

from hypothesis import given
from hypothesis import strategies as st

from dairllm.coordinator.text import StopFilter

texts = st.text("ab\n", max_size=30)
stop_lists = st.lists(st.text("ab\n", min_size=1, max_size=5), max_size=4)


def cut_at_first_stop(text: str, stops: list[str]) -> str:
    """Letter by letter: the first place where a stop string is complete ends the text before the longest one that ends there."""
    for end in range(1, len(text) + 1):
        complete = [stop for stop in stops if text[:end].endswith(stop)]
        if complete:
            return text[: end - max(map(len, complete))]
    return text


def push_all(chunks: list[str], stops: list[str]) -> tuple[list[str], bool]:
    stop_filter = StopFilter(stops)
    out = [stop_filter.push(chunk) for chunk in chunks]
    return [*out, stop_filter.flush()], stop_filter.found


@given(st.lists(texts, max_size=12), stop_lists)
def test_chunks_do_not_matter(chunks: list[str], stops: list[str]) -> None:
    text = "".join(chunks)
    out, found = push_all(chunks, stops)
    assert "".join(out) == cut_at_first_stop(text, stops)
    assert found == any(stop in text for stop in stops)


@given(st.lists(texts, max_size=12), stop_lists)
def test_holds_back_no_more_than_it_must(chunks: list[str], stops: list[str]) -> None:
    stop_filter, text, out = StopFilter(stops), "", ""
    for chunk in chunks:
        text += chunk
        out += stop_filter.push(chunk)
        if stop_filter.found:
            return
        held = text[len(out) :]
        assert text.startswith(out)
        assert not held or any(stop.startswith(held) for stop in stops)


def test_without_stop_strings_everything_passes_at_once() -> None:
    assert StopFilter(()).push("text") == "text"


def test_the_stop_string_that_is_complete_first_counts() -> None:
    assert push_all(["xab", "c"], ["abc", "b"])[0] == ["xa", "", ""]


def test_of_two_that_end_together_the_longer_counts() -> None:
    assert push_all(["x", "a", "b", "c"], ["bc", "abc"])[0] == ["x", "", "", "", ""]


def test_long_stop_strings_that_nearly_come_take_no_time() -> None:
    begin = time.process_time()
    stop_filter = StopFilter([f"{'a' * 1000}{index}" for index in range(16)])
    for _ in range(4000):
        stop_filter.push("aaaa")
        stop_filter.push("b")
    assert time.process_time() - begin < 5
