"""The gateway remembers where each conversation was last, and no more of them than it should."""

from fairlead.serve.homes import MOST, NOWHERE, Homes


def test_the_last_request_counts() -> None:
    homes = Homes()
    assert homes.of(7) == NOWHERE
    homes.sent(7, 2)
    homes.sent(8, 0)
    homes.sent(7, 1)
    assert (homes.of(7), homes.of(8), homes.of(9)) == (1, 0, NOWHERE)


def test_requests_without_a_conversation_have_no_home() -> None:
    homes = Homes()
    homes.sent(0, 2)
    assert homes.of(0) == NOWHERE
    assert len(homes) == 0


def test_conversations_that_were_silent_for_longest_make_room() -> None:
    homes = Homes(most=3)
    for session in (1, 2, 3):
        homes.sent(session, 0)
    homes.sent(1, 1)
    homes.sent(4, 2)
    assert [homes.of(session) for session in (1, 2, 3, 4)] == [1, NOWHERE, 0, 2]
    many = Homes()
    for session in range(1, MOST + 100):
        many.sent(session, 0)
    assert len(many) == MOST


def test_a_backend_in_the_place_of_another_has_none_of_its_conversations() -> None:
    homes = Homes()
    homes.sent(1, 0)
    homes.sent(2, 1)
    homes.taken_over(0)
    assert (homes.of(1), homes.of(2)) == (NOWHERE, 1)
