"""Counting tokens in what passes through, and what a request's body tells."""

import json

import pytest

from fairlead.serve.facts import partial_facts, read_facts, session_number
from fairlead.serve.tokens import EventMeter, PromptEstimate, Usage, find_usage


def event(content: object) -> bytes:
    return f"data: {content if isinstance(content, str) else json.dumps(content)}\n\n".encode()


def text(piece: str, **more: object) -> bytes:
    return event({"choices": [{"text": piece}], **more})


COMPLETION = [text("a"), text("b\n\n"), text(" data: c"), event("[DONE]")]
CHAT = [
    event({"choices": [{"delta": {"role": "assistant", "content": ""}}]}),
    event({"choices": [{"delta": {"content": "a"}}]}),
    event({"choices": [{"delta": {"content": "b"}, "finish_reason": "length"}]}),
    event({"choices": [], "usage": {"prompt_tokens": 9, "completion_tokens": 2}}),
    event("[DONE]"),
]
RESPONSES = [
    b'event: response.created\ndata: {"type":"response.created"}\n\n',
    b'event: response.output_text.delta\ndata: {"delta":"a"}\n\n',
    b'event: response.output_text.delta\ndata: {"delta":"b"}\n\n',
    b'event: response.completed\ndata: {"response":{"usage":{"input_tokens":4,"output_tokens":2}}}\n\n',
]


@pytest.mark.parametrize("size", [1, 2, 3, 7, 50, 10_000])
@pytest.mark.parametrize(
    ("events", "tokens"), [(COMPLETION, 3), (CHAT, 2), (RESPONSES, 2), ([b": ping\n\n", *COMPLETION], 3)]
)
def test_tokens_are_counted_however_the_stream_is_cut(events, tokens, size):
    for stream in (b"".join(events), b"".join(events).replace(b"\n\n", b"\r\n\r\n")):
        meter = EventMeter()
        counted = sum(meter.feed(stream[i : i + size]) for i in range(0, len(stream), size))
        assert counted == meter.tokens == tokens


def test_a_role_that_comes_with_the_first_token_hides_no_later_one():
    meter = EventMeter()
    assert [meter.feed(piece) for piece in (CHAT[0] + CHAT[1], CHAT[1], CHAT[2], CHAT[4])] == [1, 1, 1, 0]


def test_usage_settles_what_merged_events_hide():
    meter = EventMeter()
    assert meter.feed(text("several tokens in one")) == 1
    # Eight more were hidden, but none of them has come just now.
    assert meter.feed(event({"choices": [], "usage": {"prompt_tokens": 5, "completion_tokens": 9}})) == 0
    assert (meter.tokens, meter.usage) == (9, Usage(5, 9))
    once = EventMeter()  # in one piece with the last token
    total = event({"choices": [], "usage": {"prompt_tokens": 5, "completion_tokens": 9}})
    assert [once.feed(text("a")), once.feed(text("b") + total + event("[DONE]"))] == [1, 1]
    assert once.tokens == 9
    running = EventMeter()  # with usage in every event
    assert [
        running.feed(text("x", usage={"prompt_tokens": 5, "completion_tokens": n})) for n in (1, 4, 5)
    ] == [1, 3, 1]


@pytest.mark.parametrize("separators", [(",", ":"), (", ", ": ")])
def test_pieces_of_whole_events_are_counted_like_any_others(separators):
    def compact(content):
        return f"data: {json.dumps(content, separators=separators)}\n\n".encode()

    word = compact({"choices": [{"text": "a text, not an event: b"}]})
    empty = compact({"choices": []})
    total = compact({"choices": [], "usage": {"prompt_tokens": 1, "completion_tokens": 8}})
    meter = EventMeter()
    assert [meter.feed(piece) for piece in (word[:9], word[9:])] == [0, 1]
    assert [meter.feed(piece) for piece in (word, word + word, word + empty)] == [1, 2, 1]
    assert [meter.feed(piece) for piece in (b": ping\n\n", empty, event("[DONE]"))] == [0, 0, 0]
    assert meter.feed(total) == 0 and meter.tokens == 8


def test_a_text_about_usage_is_not_usage():
    said = json.dumps({"choices": [{"text": '"usage": {"prompt_tokens": 99, "completion_tokens": 99}'}]})
    assert find_usage(said.encode()) is None
    nested = b'{"usage": {"prompt_tokens": 3, "details": {"x": 1}, "completion_tokens": 4}}'
    assert find_usage(nested) == Usage(3, 4)
    assert find_usage(b'"usage":null') is None
    # The last one that is whole counts.
    several = b'{"usage": {"input_tokens": 1}}\n{"usage": {"input_tokens": 2, "output_tokens": 3}}'
    assert find_usage(several + b'{"usage": null}{"usage": {"input_tok') == Usage(2, 3)


def test_prompt_lengths_are_learned_per_model():
    estimate = PromptEstimate(4.0)
    assert estimate.tokens("m", 400) == 100
    for _ in range(300):
        estimate.learn("m", 600, 200)
    assert estimate.tokens("m", 300) == pytest.approx(100, abs=1)
    assert estimate.tokens("other", 400) == 100
    for i in range(10_000):  # clients may invent names
        estimate.learn(f"x{i}", 4, 1)
    assert len(estimate._seen) <= estimate.MAX_MODELS


def body(**content: object) -> bytes:
    return json.dumps(content).encode()


def test_facts():
    facts = read_facts(
        body(model="m", prompt="abcd", stream=True, max_tokens=7, user="u"), b"/v1/completions"
    )
    assert (facts.model, facts.stream, facts.prompt_bytes, facts.max_tokens) == ("m", True, 6, 7)
    assert (facts.session, facts.prompt_tokens, facts.stored) == ("u", -1, False)
    chat = read_facts(
        body(messages=[{"role": "user", "content": "x" * 100}], max_completion_tokens=3),
        b"/v1/chat/completions",
    )
    assert chat.prompt_bytes > 100 and chat.max_tokens == 3
    assert read_facts(body(prompt=[1, 2, 3]), b"/v1/completions").prompt_tokens == 3
    assert read_facts(body(prompt=[[1, 2], [3]]), b"/v1/completions").prompt_tokens == 3
    assert read_facts(body(prompt=["a", "b"]), b"/v1/completions").prompt_tokens == -1
    assert read_facts(body(input="x"), b"/v1/responses").stored
    assert not read_facts(body(input="x", store=False), b"/v1/responses").stored


@pytest.mark.parametrize(
    "data",
    [b"", b"{", b"[]", b"null", b'"x"', b"\xff", b"[" * 100_000, body(model=3, max_tokens="x", stream=1)],
)
def test_strange_bodies_have_facts_too(data):
    facts = read_facts(data, b"/v1/completions")
    assert (facts.model, facts.max_tokens, facts.stream) == ("", 0, False)


def test_the_beginning_of_a_large_body_tells_something():
    prefix = b'{"model": "big", "stream": true, "max_tokens": 12, "prompt": "he said \\"model\\": \\"x\\" '
    facts = partial_facts(prefix, 5_000_000)
    assert (facts.model, facts.stream, facts.max_tokens, facts.prompt_bytes) == ("big", True, 12, 5_000_000)


def test_sessions_are_opaque_numbers():
    assert session_number("") == 0
    assert session_number("a") == session_number("a") != session_number("b")
    assert 0 < session_number("a") < 2**53
