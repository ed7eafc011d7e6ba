"""Contests and judgements on made-up results whose truth is known."""

import numpy as np
import pytest

from fairlead.errors import FairleadError
from fairlead.evaluate.contest import METRICS, OBJECTIVE, Contest, Values, differ, value
from fairlead.evaluate.judgement import judge, summarise
from fairlead.evaluate.quality_page import page, picture, summary_lines
from fairlead.view.preference import DEFAULT_FAVOR, weights_of

LOADS, SEEDS = (0.5, 0.9), 8
DIALS = (0.0, DEFAULT_FAVOR, 1.0)
NOISE = np.exp(np.random.default_rng(0).normal(0, 0.4, (len(LOADS), SEEDS)))
"""What the arrivals do to all routers alike: far more than routing does."""


def made(e2e: float, ttft: float, p99_e2e: float = 20.0, p99_ttft: float = 2.0, seed: int = 1) -> Values:
    """Values around these means, with a little noise of the router's own."""
    own = np.random.default_rng(seed)
    levels = dict(zip(METRICS, (e2e, p99_e2e, ttft, p99_ttft), strict=False))
    levels |= {"e2e_mean_s": e2e, "ttft_mean_s": ttft, "e2e_p99_s": p99_e2e, "ttft_p99_s": p99_ttft}
    levels["ttft_worst_mean_s"] = 1.1 * p99_ttft
    return {
        metric: level * NOISE * np.exp(own.normal(0, 0.002, NOISE.shape)) for metric, level in levels.items()
    }


def contest(learned=None, **more) -> Contest:
    """Two heuristics, each best at one thing; a policy that beats both somewhere on its dial."""
    content = {
        "scenario": "made-up",
        "loads": LOADS,
        "replicas": 4,
        "unequal": False,
        "heuristics": {
            "round_robin": made(8.0, 0.8, p99_ttft=6.0, seed=2),
            "lor": made(5.0, 0.4, p99_ttft=3.0, seed=3),
            "least_work": made(6.0, 0.3, p99_ttft=2.0, seed=4),
        },
        "learned": learned
        or {
            0.0: [made(4.0, 0.39, p99_ttft=2.9, seed=5)],
            DEFAULT_FAVOR: [made(4.5, 0.35, p99_ttft=2.5, seed=6)],
            1.0: [made(5.9, 0.29, p99_ttft=1.9, seed=7)],
        },
    }
    return Contest(**{**content, **more})


def test_the_noise_of_the_arrivals_cancels():
    found = differ([made(4.0, 0.4, seed=1)], made(5.0, 0.4, seed=2), "e2e_mean_s")
    assert found.relative == pytest.approx(-0.2, abs=0.003)
    assert -0.21 < found.ci_low < found.ci_high < -0.19
    assert (found.better, found.worse, found.not_above) == (True, False, True)
    assert found.over == "evaluation seeds"


def test_several_training_seeds_are_what_the_interval_is_over():
    runs = [made(level, 0.4, seed=i) for i, level in enumerate((3.5, 4.0, 4.5))]
    found = differ(runs, made(5.0, 0.4, seed=9), "e2e_mean_s")
    assert found.over == "training seeds"
    assert found.relative == pytest.approx(np.exp(np.mean(np.log([0.7, 0.8, 0.9]))) - 1, abs=0.003)
    assert found.ci_high > -0.1  # three policies that differ: a wide interval


def test_a_router_is_no_better_than_itself():
    same = made(5.0, 0.4)
    found = differ([same], same, "ttft_p99_s")
    assert (found.relative, found.ci_low, found.ci_high) == (0.0, 0.0, 0.0)
    assert not found.better and not found.worse and found.not_above


def test_the_objective_is_what_the_dial_weighs():
    w_ttft, w_e2e, w_tail = weights_of(0.25)
    values = made(5.0, 0.4)
    expected = w_ttft * values["ttft_mean_s"] + w_e2e * values["e2e_mean_s"]
    expected += w_tail * 0.02 * values["ttft_worst_mean_s"]
    np.testing.assert_allclose(value(values, OBJECTIVE, 0.25), expected)


def test_a_frontier_that_dominates_although_no_single_setting_does():
    found = judge(contest())
    assert found.best["e2e_mean_s"] == "lor" and found.best["ttft_p99_s"] == "least_work"
    assert {m.heuristic: m.dials for m in found.matched} == {
        "round_robin": [0.0, DEFAULT_FAVOR, 1.0],
        "lor": [0.0, DEFAULT_FAVOR],
        "least_work": [1.0],
    }
    assert found.dominates and found.dominates_strictly
    # The default is better than lor on both, but worse than least_work on p99 TTFT.
    assert found.setting(DEFAULT_FAVOR).fails_against == ["least_work"]
    assert not found.setting(DEFAULT_FAVOR).holds and not found.setting(DEFAULT_FAVOR).holds_strictly
    assert found.setting(1.0).fails_against == ["lor"]


def test_a_heuristic_that_is_better_on_both_is_matched_nowhere():
    strong = {**contest().heuristics, "oracle": made(3.5, 0.2, p99_ttft=1.0, seed=11)}
    found = judge(contest(heuristics=strong))
    assert [m.heuristic for m in found.matched if not m.dials] == ["oracle"]
    assert not found.dominates
    assert summarise([found]).dominated == 0


def test_a_wide_interval_is_not_taken_for_a_match_by_the_estimates():
    rival = made(5.0, 0.4, p99_ttft=2.0)
    swings = 0.05 + 0.3 * np.resize([-1.0, 1.0, -0.4, 0.4], SEEDS)  # 5 % worse on average, at random
    shaky = {m: each * np.exp(swings) for m, each in rival.items()}
    found = judge(contest(heuristics={"lor": rival}, learned={DEFAULT_FAVOR: [shaky]}))
    assert found.dominates and not found.dominates_strictly
    assert found.matched[0].strict_dials == []


def test_a_single_setting_that_beats_all():
    best = [made(4.0, 0.25, p99_ttft=1.5, seed=6)]
    found = judge(contest({0.0: [made(9.0, 0.9, p99_ttft=9.0)], DEFAULT_FAVOR: best}))
    assert found.setting(DEFAULT_FAVOR).holds and found.setting(DEFAULT_FAVOR).holds_strictly
    assert not found.setting(0.0).holds
    summary = summarise([found, judge(contest())])
    assert (summary.scenarios, summary.default_holds, summary.dominated) == (2, 1, 2)
    assert (summary.best_dial, summary.best_dial_holds) == (DEFAULT_FAVOR, 1)


def test_a_single_load_is_judged_by_itself():
    whole = contest()
    uneven = {m: each * np.array([[1.0], [3.0]]) for m, each in whole.learned[DEFAULT_FAVOR][0].items()}
    found = contest({DEFAULT_FAVOR: [uneven]})
    assert judge(found.at(0.5)).dominates is False  # matches lor but not least_work
    assert judge(found.at(0.5)).matched[1].dials == [DEFAULT_FAVOR]
    assert judge(found.at(0.9)).matched[1].dials == []
    assert judge(found.at(0.9)).loads == [0.9]


def test_unequal_hardware_is_judged_at_the_best_setting_whose_ttft_is_no_higher():
    learned = {
        0.0: [made(3.5, 0.5, seed=5)],  # best E2E, but a higher TTFT than lor
        DEFAULT_FAVOR: [made(4.0, 0.38, seed=6)],
        1.0: [made(4.9, 0.3, seed=7)],
    }
    found = judge(contest(learned, unequal=True))
    assert found.hardware is not None
    assert (found.hardware.dial, found.hardware.heuristic) == (DEFAULT_FAVOR, "lor")
    assert found.hardware.e2e.relative == pytest.approx(-0.2, abs=0.005)
    assert summarise([found]).unequal_reached == 1
    small = judge(contest({DEFAULT_FAVOR: [made(4.5, 0.38, seed=6)]}, unequal=True))
    assert summarise([small, found]).unequal_reached == 1
    assert judge(contest()).hardware is None


def test_what_is_kept_of_a_specialists_gain():
    heuristics = {"lor": made(10.0, 1e-6, p99_ttft=1e-6, seed=3)}
    specialist = {DEFAULT_FAVOR: made(8.0, 1e-6, p99_ttft=1e-6, seed=4)}
    learned = {DEFAULT_FAVOR: [made(9.0, 1e-6, p99_ttft=1e-6, seed=5)]}
    found = judge(contest(learned, heuristics=heuristics, specialist=specialist))
    assert found.kept is not None and found.kept.share is not None
    assert found.kept.specialist_gain == pytest.approx(0.2, abs=0.003)
    assert found.kept.gain == pytest.approx(0.1, abs=0.003)
    assert found.kept.share == pytest.approx(np.log(0.9) / np.log(0.8), abs=0.02)
    none = judge(contest(heuristics=heuristics, specialist={DEFAULT_FAVOR: heuristics["lor"]}))
    assert none.kept is not None and none.kept.share is None
    assert summarise([none]).share_kept is None


def test_large_clusters_are_compared_with_lor():
    assert judge(contest()).over_lor is None
    found = judge(contest(replicas=64))
    assert found.over_lor is not None and found.over_lor[OBJECTIVE].better
    assert found.over_lor["e2e_mean_s"].relative == pytest.approx(-0.1, abs=0.005)
    assert (summarise([found]).large, summarise([found]).large_beat_lor) == (1, 1)


def test_lookahead_is_compared_at_the_same_setting_where_there_is_headroom():
    ahead = {dial: made(4.6, 0.36, p99_ttft=2.6, seed=20 + i) for i, dial in enumerate(DIALS)}
    found = judge(contest(lookahead=ahead))
    assert found.over_lookahead is not None
    assert found.over_lookahead.default_dial.better
    assert "e2e_mean_s" in found.headroom
    assert summarise([found]).with_headroom == 1
    # Routers that are all alike leave no headroom, so nothing is counted.
    alike = {name: made(5.0, 0.4, seed=i) for i, name in enumerate(("round_robin", "lor"))}
    none = judge(contest(heuristics=alike, lookahead={d: made(5.0, 0.4, seed=40) for d in DIALS}))
    assert none.headroom == [] and summarise([none]).with_headroom == 0


def test_one_seed_says_nothing():
    with pytest.raises(FairleadError, match="two seeds"):
        differ([{"x": np.ones((1, 1))}], {"x": np.ones((1, 1))}, "x")


def test_the_page_says_what_was_found():
    whole = contest(lookahead={DEFAULT_FAVOR: made(4.6, 0.36)}, unequal=True, replicas=64)
    found = judge(whole)
    text = page({"made-up": whole}, [found], summarise([found]), ["Made by a test."])
    assert "in 1 of 1 scenarios some setting of the dial is no worse" in text
    assert "| [made-up](#made-up) | lor | **" in text
    assert "default fails against 1 of 3" in text
    assert "is not better on one and worse on none against: least_work" in text
    assert "- No worse at 1 (by the estimates: 1): least_work" in text
    assert text.count("<details>") == text.count("</details>") == len(LOADS)
    assert "(frontiers/made-up.svg)" in text
    assert len(summary_lines(summarise([found]))) == 5


def test_the_picture_leaves_out_what_is_far_worse_and_says_so():
    far = {**contest().heuristics, "hopeless": made(90.0, 9.0, p99_ttft=90.0)}
    drawn = picture(contest(heuristics=far))
    assert drawn.startswith("<svg") and "far worse and not shown: hopeless" in drawn
    assert drawn == picture(contest(heuristics=far))
