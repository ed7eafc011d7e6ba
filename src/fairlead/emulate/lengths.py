"""How long answers are that nobody said the length of: as the scenario's length model has it."""

from fairlead.workload.scenario import Scenario, generate

_TABLE = 1024


class Lengths:
    """Output lengths drawn once from the scenario's own stream and dealt out in order, again and again."""

    def __init__(self, scenario: Scenario, seed: int) -> None:
        """The lengths of the evaluation split under `seed`."""
        requests = generate(scenario, requests=_TABLE, rate=1.0, seed=seed, split="evaluate")
        self._tokens = requests.output_tokens.tolist()
        self._dealt = 0

    def next(self) -> int:
        """Tokens of the next answer."""
        tokens = int(self._tokens[self._dealt % len(self._tokens)])
        self._dealt += 1
        return tokens
