"""Where each conversation's last request was sent: a bounded memory of the gateway's."""

from collections import OrderedDict

NOWHERE = -1
"""No row: the conversation is new, or was forgotten."""
MOST = 65_536
"""Conversations that are remembered; those that were silent for longest make room."""


class Homes:
    """The backends' rows in the ledger, by the conversations' numbers (`facts.session_number`)."""

    def __init__(self, most: int = MOST) -> None:
        """`most` conversations are remembered."""
        self._most = most
        self._rows: OrderedDict[int, int] = OrderedDict()  # in the order of their last requests

    def __len__(self) -> int:
        """How many conversations are remembered."""
        return len(self._rows)

    def of(self, session: int) -> int:
        """The row that the last request of `session` was sent to, or `NOWHERE`; 0 is no conversation."""
        return self._rows.get(session, NOWHERE)

    def sent(self, session: int, row: int) -> None:
        """A request of `session` was sent to `row`; nothing is remembered of 0."""
        if not session:
            return
        self._rows[session] = row
        self._rows.move_to_end(session)
        if len(self._rows) > self._most:
            self._rows.popitem(last=False)

    def taken_over(self, row: int) -> None:
        """Another backend has the row now: no conversation is at home there."""
        for session in [each for each, its in self._rows.items() if its == row]:
            del self._rows[session]
