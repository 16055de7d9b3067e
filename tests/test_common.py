"""Every variant of both estimators against scikit-learn's estimator checks."""

from sklearn.utils.estimator_checks import parametrize_with_checks
from variants import variants


@parametrize_with_checks(list(variants()))
def test_estimator_checks(estimator, check):
    check(estimator)
