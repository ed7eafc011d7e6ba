"""Sentences say who wins and who loses."""

from fairlead.evaluate.conclusions import build_results
from fairlead.evaluate.results import Configuration, Results, Row
from fairlead.evaluate.words import headline, setting_words


def test_wins_and_losses_are_both_told(results: Results) -> None:
    text = " ".join(results.words)
    assert "learned wins on mean E2E" in text
    assert "; loses on mean TTFT" in setting_words(results, "chat-unequal", 0.8)[2]
    assert "learned's mean E2E is" in text and "above lookahead [" in text
    assert "paired over 5 seeds" in text


def test_the_headline_counts_settings(results: Results) -> None:
    (sentence,) = headline(results)
    assert sentence.startswith(
        "learned against the best heuristic for each metric, in 3 settings: mean E2E is better in 3"
    )
    assert "mean TTFT is worse in 3" in sentence
    assert results.words[0] == sentence


def test_without_a_learned_router_the_best_heuristics_are_named(
    configuration: Configuration, rows: list[Row]
) -> None:
    only = configuration.model_copy(update={"routers": configuration.routers[:2]})
    results = build_results(only, [row for row in rows if row.router in only.router_names])
    assert results.words[0].startswith("No learned router took part.")
    assert (
        "The best heuristic in 3 settings on mean E2E: least_prefill; on mean TTFT: least_prefill;"
        in results.words[0]
    )


def test_no_word_is_missing(results: Results) -> None:
    for sentence in results.words:
        assert sentence.endswith(".")
        assert not {"nan", "inf", "None", "N/A"} & set(sentence.replace(",", " ").split())
