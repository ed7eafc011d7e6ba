"""Which headers are passed on."""

from fairlead.serve.heads import passed_on
from fairlead.serve.messages import Headers


def headers(*lines: tuple[str, str]) -> Headers:
    return [(name.lower().encode(), name.encode(), value.encode()) for name, value in lines]


def test_what_an_answer_declares_hop_by_hop_stays_here_wherever_it_stands():
    answer = headers(
        ("X-Before", "1"),
        ("Connection", "close, x-before, X-After"),
        ("Content-Type", "text/event-stream"),
        ("Via", "1.1 a"),
        ("X-After", "2"),
        ("X-Kept", "a: b"),
        ("Via", "1.1 b"),
    )
    passed = passed_on(answer, hide_report=False)
    assert passed.lines == b"Content-Type: text/event-stream\r\nX-Kept: a: b\r\n"
    assert (passed.via, passed.events, passed.encoded) == (b"1.1 a, 1.1 b, ", True, False)


def test_a_load_report_is_read_and_passed_on_only_to_those_who_asked():
    answer = headers(("Endpoint-Load-Metrics", "TEXT a=1"), ("Content-Encoding", "gzip"))
    hidden = passed_on(answer, hide_report=True)
    assert (hidden.report, hidden.lines, hidden.encoded) == (
        b"TEXT a=1",
        b"Content-Encoding: gzip\r\n",
        True,
    )
    assert passed_on(answer, hide_report=False).lines.count(b"\r\n") == 2
