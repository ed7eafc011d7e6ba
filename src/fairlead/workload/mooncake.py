"""Traces with shared prefixes in the format of Mooncake (Qin et al., FAST 2025): one JSON object a line.

`timestamp` (ms), `input_length` and `output_length` (tokens), and `hash_ids`: for each block of 512 prompt
tokens, the last one perhaps not full, an id of its content and of all before it.
"""

import json
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from fairlead.errors import FairleadError
from fairlead.section import FileBeside, Section
from fairlead.workload.content import Content, chains, full_blocks
from fairlead.workload.requests import Requests
from fairlead.workload.traces import MOST_TOKENS, Recording, TrainShare, part_of, version, window

HASH_BLOCK = 512
"""Tokens that one of the trace's hash ids stands for."""
KEYS = ("timestamp", "input_length", "output_length", "hash_ids")


class Rows(NamedTuple):
    """The requests of a trace file, in its order."""

    time_s: npt.NDArray[np.float64]
    prompt_tokens: npt.NDArray[np.int64]
    output_tokens: npt.NDArray[np.int64]
    hashes: npt.NDArray[np.int64]
    """The hash ids of all requests, one after the other, renumbered from 0."""
    offsets: npt.NDArray[np.int64]
    """(N + 1,) where those of each request begin."""


class MooncakeTrace(Section):
    """The requests of a trace in the Mooncake format, stretched so that their mean rate is the one asked for.

    Training and validation take the first part of the trace and evaluation the rest; the seed picks which
    lines of its part a run replays (`traces.window`).
    """

    kind: Literal["mooncake"] = "mooncake"
    path: FileBeside
    """JSON lines, relative to the scenario file."""
    train_share: TrainShare = 0.5
    """Share of the lines, from the start, that belongs to training."""

    def requests(
        self, count: int, rate: float, seed: int, split: str, max_tokens: int | None, block_size: int | None
    ) -> Requests:
        """`count` consecutive requests, one mean gap after the start; arguments as `Sessions.requests`.

        Raises:
            FairleadError: if the trace is bad, too short, or a single instant.
        """
        rows = read_mooncake(self.path)
        part = window(len(rows.time_s), count, self.train_share, seed, split, self.path)
        times = rows.time_s[part]
        if count > 1 and times[-1] <= times[0]:
            raise FairleadError(f"{self.path}: {count} requests arrive at one instant; nothing to stretch")
        stretch = (count - 1) / (times[-1] - times[0]) if count > 1 else 0.0
        arrival_s = (1.0 + (times - times[0]) * stretch) / rate
        prompts, outputs = rows.prompt_tokens[part], rows.output_tokens[part]
        if max_tokens is not None:
            outputs = np.minimum(outputs, max_tokens)
        content = None if block_size is None else _content(rows, part, outputs, block_size)
        return Requests(arrival_s, prompts, outputs, content=content)

    def rows_for_training(self) -> int:
        """How many lines belong to training."""
        return len(part_of(len(read_mooncake(self.path).time_s), self.train_share, "train"))

    def recording(self, count: int) -> Recording:
        """What `count` requests are taken from; errors as `read_mooncake`."""
        return Recording(self.path, len(read_mooncake(self.path).time_s), self.train_share, count)


def _content(rows: Rows, part: slice, outputs: npt.NDArray[np.int64], block_size: int) -> Content:
    """KV blocks that end in the prompt are known by the hash of the block of 512 that they end in.

    That hash covers all that is before it, so nothing is shared that should not be; what two prompts share
    beyond their last common hash is not known to be shared.
    Blocks that end in the output are the request's own.
    """
    prompts = rows.prompt_tokens[part]
    counts = full_blocks(prompts, outputs, block_size)
    offsets = np.concatenate([[0], np.cumsum(counts)])
    position = chains(counts, np.zeros(len(counts), np.int64))
    last_token = (position + 1) * block_size - 1
    in_prompt = last_token < np.repeat(prompts, counts)
    hash_block = last_token // HASH_BLOCK
    # Of the KV blocks that end in one block of 512 tokens, the first one has number 0.
    within = position - (hash_block * HASH_BLOCK) // block_size
    most = HASH_BLOCK // block_size + 1
    entry = np.repeat(rows.offsets[part], counts) + hash_block
    hashes = rows.hashes[np.where(in_prompt, entry, 0)]
    own = (int(rows.hashes.max()) + 1) * most + np.arange(len(position))
    return Content(np.where(in_prompt, hashes * most + within, own).astype(np.int32), offsets, block_size)


def read_mooncake(path: Path | str) -> Rows:
    """The requests of a file; reading is cached until the file changes: treat the arrays as read-only.

    Raises:
        FairleadError: naming the line, for what is not a JSON object, a missing or bad value, times that are
            not sorted, and hash ids that contradict the lengths or each other.
    """
    return _read(*version(path))


@lru_cache(maxsize=4)
def _read(path: Path, _changed_ns: int, _size: int) -> Rows:
    times: list[float] = []
    lengths: list[tuple[int, int]] = []
    hashes: list[int] = []
    offsets = [0]
    known: dict[int, tuple[int, tuple[int, int], int]] = {}
    try:
        with path.open(encoding="utf-8-sig") as file:
            for number, line in enumerate(file, 1):
                if not line.strip():
                    continue
                where = f"{path}: line {number}"
                row = _parse(line, where)
                if times and row["timestamp"] / 1000 < times[-1]:
                    raise FairleadError(
                        f"{where}: timestamp {row['timestamp']} is earlier than before; sort the trace"
                    )
                times.append(row["timestamp"] / 1000)
                lengths.append((row["input_length"], row["output_length"]))
                hashes += _chain(row["hash_ids"], row["input_length"], known, where)
                offsets.append(len(hashes))
    except UnicodeDecodeError as error:
        raise FairleadError(f"{path} is not a text file: {error}") from None
    if not times:
        raise FairleadError(f"{path}: the trace is empty")
    prompts, outputs = np.array(lengths, np.int64).T
    return Rows(
        np.array(times) - times[0],
        np.ascontiguousarray(prompts),
        np.ascontiguousarray(outputs),
        np.array(hashes, np.int64),
        np.array(offsets, np.int64),
    )


def _parse(line: str, where: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise FairleadError(f"{where} is not JSON: {error}") from None
    if not isinstance(row, dict):
        raise FairleadError(f"{where} is not a JSON object with the keys {', '.join(KEYS)}")
    for key in KEYS:
        if key not in row:
            raise FairleadError(f"{where}: {key} is missing; a line has {', '.join(KEYS)}")
    time = row["timestamp"]
    if not isinstance(time, int | float) or isinstance(time, bool) or not 0 <= time < 1e15:
        raise FairleadError(f"{where}: timestamp = {time!r} is not a number of milliseconds from 0 up")
    for key in ("input_length", "output_length"):
        if not isinstance(row[key], int) or isinstance(row[key], bool) or not 1 <= row[key] <= MOST_TOKENS:
            raise FairleadError(
                f"{where}: {key} = {row[key]!r} is not a whole number of tokens, from 1 to {MOST_TOKENS:,}"
            )
    ids = row["hash_ids"]
    if not isinstance(ids, list) or any(not isinstance(i, int) or isinstance(i, bool) or i < 0 for i in ids):
        raise FairleadError(f"{where}: hash_ids is not a list of whole numbers from 0 up")
    return row


def _chain(
    ids: list[int], length: int, known: dict[int, tuple[int, tuple[int, int], int]], where: str
) -> list[int]:
    """The ids of one request renumbered, after checking them against its length and the lines before.

    `known` has for each id its new number, its place (position, id before it) and the tokens of its block.
    """
    needed = -(-length // HASH_BLOCK)
    if len(ids) != needed:
        raise FairleadError(
            f"{where}: hash_ids has {len(ids)} entries, but input_length {length} makes {needed} blocks of "
            f"{HASH_BLOCK} tokens"
        )
    renumbered = []
    for position, each in enumerate(ids):
        place = (position, ids[position - 1] if position else -1)
        tokens = min(HASH_BLOCK, length - position * HASH_BLOCK)
        number, first_place, first_tokens = known.setdefault(each, (len(known), place, tokens))
        if first_place != place:
            raise FairleadError(
                f"{where}: hash id {each} stands behind other blocks than on an earlier line, so it is not a "
                "hash of all that is before it"
            )
        if first_tokens != tokens:
            raise FairleadError(
                f"{where}: hash id {each} stands for {tokens} tokens here, for {first_tokens} on an earlier "
                "line: hash_ids and input_length contradict each other"
            )
        renumbered.append(number)
    return renumbered
