import numpy as np

from fairlead.simulator.forest import expected_forest, grown_forest


def test_with_many_rows_at_every_value_the_nearest_one_counts():
    x, y = np.repeat([0.0, 10.0, 20.0], 40), np.repeat([1.0, 5.0, 2.0], 40)
    at = np.array([-3.0, 0.0, 4.9, 5.1, 10.0, 16.0, 99.0])
    np.testing.assert_allclose(expected_forest(x, y, at), [1, 1, 1, 5, 5, 2, 2], rtol=1e-9)


def test_a_value_whose_row_is_missing_from_a_tree_is_taken_from_its_neighbours():
    """With one row each, a value is missing from exp(-1) of the trees."""
    lost = np.exp(-1)
    (found,) = expected_forest(np.array([0.0, 1.0]), np.array([0.0, 1.0]), np.array([0.0]))
    # The left one is known, or it is not and the right one is; both missing cannot be.
    np.testing.assert_allclose(found, lost * (1 - lost) / (1 - lost**2), rtol=1e-9)


def test_the_formula_is_the_average_of_grown_trees():
    draw = np.random.default_rng(5)
    x = np.sort(draw.uniform(0, 50, 30))
    y = np.sin(x / 8) + draw.normal(0, 0.3, 30)
    at = draw.uniform(-2, 52, 40)
    flat = np.stack([x, np.zeros(30)], 1)
    grown = grown_forest(flat, y, np.stack([at, np.zeros(40)], 1), trees=2000)
    np.testing.assert_allclose(grown, expected_forest(x, y, at), atol=0.03)


def test_a_forest_on_two_features_follows_both_and_is_the_same_every_time():
    rows, columns = np.meshgrid(np.arange(20.0), np.arange(20.0))
    x = np.stack([rows.ravel(), columns.ravel()], 1)
    y = 2 * x[:, 0] + 100 * (x[:, 1] > 9.5)
    at = np.array([[10.0, 2.0], [10.0, 17.0], [500.0, 17.0]])
    found = grown_forest(x, y, at)
    np.testing.assert_allclose(found, [20, 120, 138], atol=1.5)
    np.testing.assert_array_equal(found, grown_forest(x, y, at))
