import numpy as np
import pytest
import sklearn.metrics
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from branchwork.training.evaluate import confusion_matrix, per_class, wilson_interval


@given(st.integers(1, 20_000).flatmap(lambda total: st.tuples(st.integers(0, total), st.just(total))))
def test_the_interval_is_wilsons(counts):
    correct, total = counts
    low, high = wilson_interval(correct, total)
    reference = stats.binomtest(correct, total).proportion_ci(0.95, method="wilson")
    assert (low, high) == pytest.approx((reference.low, reference.high), abs=1e-12)
    assert 0 <= low <= correct / total <= high <= 1


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=60))
def test_figures_by_class_equal_scikit_learn(pairs):
    labels, predictions = np.array(pairs).T
    confusion = confusion_matrix(torch.tensor(labels), torch.tensor(predictions), 4)
    assert np.array_equal(confusion, sklearn.metrics.confusion_matrix(labels, predictions, labels=range(4)))
    reference = sklearn.metrics.precision_recall_fscore_support(labels, predictions, labels=range(4), zero_division=0)
    ours = [(c.precision, c.recall, c.f1, c.images) for c in per_class(confusion, tuple("abcd"))]
    np.testing.assert_allclose(np.array(ours).T, reference, atol=1e-12)
