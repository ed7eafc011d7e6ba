"""The time of a decision is reported for every replica count, median below tail."""

from fairlead.bench import decision


def test_every_replica_count_has_a_median_and_a_tail():
    result = decision.measure(0.0, lambda what, done, total: None)
    assert list(result["p50_us"]) == list(result["p99_us"]) == [str(r) for r in decision.REPLICAS]
    assert all(0 < result["p50_us"][r] <= result["p99_us"][r] for r in result["p50_us"])
