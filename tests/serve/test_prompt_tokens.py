"""Prompts counted before they are placed: by a tokenizer file, by a backend, or not in time."""

import asyncio
import json
import threading
from contextlib import contextmanager
from pathlib import Path

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from fairlead.errors import FairleadError
from fairlead.serve.facts import read_facts
from fairlead.serve.prompt_tokens import Remembered, TokenizerFile
from fairlead.serve.settings import parse_settings
from fairlead.view import schema

SIX = {"model": "m", "prompt": "one two three four five six", "max_tokens": 2}
CHAT = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "one two three"}]


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer with one token for each word, and a mark at the beginning of every text."""
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    words = Tokenizer(models.WordLevel({"<unk>": 0, "<s>": 1}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    words.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", 1)]
    )
    words.enable_truncation(4)
    words.save(str(path))
    return path


def facts(body: dict[str, object], path: bytes = b"/v1/completions"):
    return read_facts(json.dumps(body).encode(), path)


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (SIX, (6, 0, True)),
        ({"prompt": ["one two", "three"]}, (3, 0, True)),
        ({"prompt": ""}, (0, 0, True)),
        ({"messages": CHAT}, (5, 2, True)),
        ({"messages": [{"role": "assistant", "content": None}, *CHAT]}, (5, 3, True)),
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": "a b"}]}]}, (2, 1, True)),
        (
            {"messages": [{"content": [{"type": "text", "text": "a b"}, {"type": "image_url", "x": {}}]}]},
            (2, 1, False),
        ),
        ({"input": [{"role": "user", "content": [{"type": "input_text", "text": "a b c"}]}]}, (3, 1, True)),
    ],
    ids=["text", "texts", "empty", "chat", "null", "parts", "image", "responses"],
)
def test_texts_of_all_forms_are_counted(file, body, expected):
    counter = TokenizerFile(file)
    for _ in range(2):  # the second time from memory
        assert counter.count(facts(body)) == expected


@pytest.mark.parametrize("prompt", [{"prompt": 5}, {"prompt": {"a": 1}}, {"messages": [{"content": 5}]}])
def test_what_is_no_text_is_not_counted(file, prompt):
    with pytest.raises(ValueError):
        TokenizerFile(file).count(facts(prompt))


def test_the_marks_of_a_template_are_learned(file):
    counter = TokenizerFile(file)
    assert counter.with_marks(5, 2) == 5
    counter.learn(5, 2, 5 + 3 * 4)
    assert counter.with_marks(5, 2) == 17 and counter.with_marks(100, 9) == 140
    assert counter.with_marks(100, 0) == 100  # those of other prompts are others


def test_memory_is_bounded():
    memory = Remembered(3)
    for key in range(5):
        memory.put(key, 10 * key)
    assert [memory.get(key) for key in range(5)] == [None, None, 20, 30, 40]


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        ({"prompts": "tokenizer"}, "give both or none"),
        ({"tokenizers": {"*": "x.json"}}, "give both or none"),
        ({"prompts": "guess"}, "tokens.prompts"),
    ],
)
def test_settings_that_do_not_fit_together_are_refused(tokens, message):
    with pytest.raises(FairleadError, match=message):
        parse_settings({"backends": [{"url": "http://127.0.0.1:1"}], "tokens": tokens}, "test")


def test_a_file_that_is_no_tokenizer_is_refused(tmp_path):
    with pytest.raises(FairleadError, match=r"is not a tokenizer\.json"):
        TokenizerFile(tmp_path / "none.json")


@contextmanager
def counting_held_up(world):
    """Nothing is counted within, however long it takes."""
    resumed = threading.Event()
    world.gateway.counter._thread.submit(resumed.wait)
    try:
        yield
    finally:
        resumed.set()


def by_file(file: Path, **more: object) -> dict[str, object]:
    return {"prompts": "tokenizer", "tokenizers": {"*": str(file)}, "count_within": 10, **more}


def test_the_view_has_what_the_tokenizer_counted(play, file):
    async def scene(world):
        seen = []
        choose = world.gateway.decider.choose

        def choosing(view, now):
            seen.append(view.request[0, schema.PROMPT_TOKENS])
            return choose(view, now)

        world.gateway.decider.choose = choosing
        assert (await world.ask(body=SIX)).status == 200
        # The backend says 7: one mark around a text, which the next request gets too.
        await asyncio.sleep(0.05)
        assert (await world.ask(body=SIX)).status == 200
        assert (await world.ask(body={**SIX, "prompt": [1, 2, 3]})).status == 200
        assert (await world.ask(body=b"no JSON")).status == 400
        assert seen[:3] == [6, 7, 3]
        page = (await world.ask("/metrics", method="GET")).body.decode()
        assert 'fairlead_prompts_total{outcome="counted"} 2' in page
        assert 'fairlead_prompts_total{outcome="failed"} 0' in page

    play(scene, tokens=by_file(file))


def test_a_prompt_that_cannot_be_counted_is_estimated_and_that_is_told(play, file):
    async def scene(world):
        told = []
        world.gateway.counter._events = lambda event, **details: told.append((event, details))
        for _ in range(2):
            assert (await world.ask(body={**SIX, "prompt": {"no": "text"}})).status == 200
        assert world.gateway.counter.outcomes["failed"] == 2
        assert [event for event, _ in told] == ["prompt_not_counted"]
        other = {**SIX, "model": "other"}
        assert (await world.ask(body=other)).status == 200
        assert world.gateway.counter.outcomes["unsupported"] == 1

    play(scene, tokens={**by_file(file), "tokenizers": {"m": str(file)}})


def test_a_request_does_not_wait_for_long(play, file):
    async def scene(world):
        with counting_held_up(world):
            assert (await world.ask(body=SIX)).status == 200
            assert world.gateway.counter.outcomes["late"] == 1
            # Until the counting has caught up, nothing waits for it at all.
            assert (await world.ask(body=SIX)).status == 200
            assert world.gateway.counter.outcomes["busy"] == 1

    play(scene, tokens=by_file(file, count_within=0.02))


def test_a_client_that_leaves_while_its_prompt_is_counted(play, file):
    async def scene(world):
        with counting_held_up(world):
            client = await world.client()
            client.request(body=SIX)
            await world.until(lambda: world.gateway.counter._under_way)
            client.reset()
            await world.until(lambda: world.gateway.requests)
        await world.until(lambda: world.gateway.counter.outcomes["counted"] == 1)
        assert world.gateway.requests == {("/v1/completions", 499): 1}
        assert not world.gateway.exchanges and not any(each.requests for each in world.backends)

    play(scene, tokens=by_file(file))


def counting(tokens: int, status: int = 200):
    """A backend that also answers `/tokenize`."""

    async def behave(backend, client, asked):
        if backend.requests[-1][1] != "/tokenize":
            return await backend.generate(client, asked)
        backend.plain(client, status, json.dumps({"count": tokens, "tokens": []}).encode())
        return True

    return behave


def asked_to_count(world):
    return [
        json.loads(body) for each in world.backends for _, path, _, body in each.requests if "token" in path
    ]


def test_a_backend_is_asked_once_for_each_prompt(play):
    async def scene(world):
        for each in world.backends:
            each.behave = counting(5)
        for _ in range(3):
            assert (await world.ask(body=SIX)).status == 200
        chat = {"model": "m", "messages": CHAT, "max_tokens": 1}
        assert (await world.ask("/v1/chat/completions", chat)).status == 200
        assert asked_to_count(world) == [
            {"model": "m", "prompt": SIX["prompt"]},
            {"model": "m", "messages": CHAT},
        ]
        assert (await world.ask("/v1/embeddings", {"model": "m", "input": "a b"})).status == 200
        assert world.gateway.counter.outcomes == {
            "counted": 2,
            "remembered": 2,
            "late": 0,
            "busy": 0,
            "failed": 0,
            "unsupported": 1,
        }
        assert sum(each.prompt_tokens for each in world.gateway.backends) >= 4 * 5

    play(scene, tokens={"prompts": "backend", "count_within": 10})


def test_a_backend_that_does_not_count_costs_no_request(play):
    async def scene(world):
        for each in world.backends:
            each.behave = counting(5, status=404)
        assert (await world.ask(body=SIX)).status == 200
        assert world.gateway.counter.outcomes["failed"] == 1

    play(scene, tokens={"prompts": "backend", "count_within": 10})


def test_the_settings_can_be_changed_while_running(play, file):
    async def scene(world):
        gateway = world.gateway
        assert world.gateway.counter is None
        tokens = gateway.settings.tokens.model_copy(
            update={"prompts": "tokenizer", "tokenizers": {"*": file}, "count_within": 10.0}
        )
        gateway.reload(gateway.settings.model_copy(update={"tokens": tokens}))
        assert (await world.ask(body=SIX)).status == 200
        assert gateway.counter.outcomes["counted"] == 1
        wrong = tokens.model_copy(update={"tokenizers": {"*": file.parent / "none.json"}})
        before = gateway.counter
        with pytest.raises(FairleadError, match="is not a tokenizer"):
            gateway.reload(gateway.settings.model_copy(update={"tokens": wrong}))
        assert gateway.counter is before

    play(scene)
