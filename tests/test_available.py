"""Facts about skae._available."""

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.exceptions import NotFittedError

from skae import AutoencoderOutlierDetector, AutoencoderTransformer
from skae._available import available_unless
from skae.bottlenecks import Gaussian

X = np.random.default_rng(0).standard_normal((30, 3))


class Lamp:
    is_lit = False

    @available_unless(lambda lamp: None if lamp.is_lit else "it is dark.")
    def read(self, page):
        """Read a page."""
        return page


def test_a_method_that_is_absent_says_why():
    lamp = Lamp()
    assert not hasattr(lamp, "read")
    for call in (lambda: lamp.read(1), lambda: Lamp.read(lamp, 1)):
        with pytest.raises(AttributeError, match=r"'Lamp' .* 'read': it is dark\.$"):
            call()
    lamp.is_lit = True
    assert lamp.read(1) == Lamp.read(lamp, 1) == 1
    assert Lamp.read.__doc__ == lamp.read.__doc__ == "Read a page."


elbo = AutoencoderOutlierDetector(bottleneck=Gaussian(score="elbo"), max_epochs=1)
plain = AutoencoderTransformer(max_epochs=1)
codebook = AutoencoderTransformer(bottleneck="quantized", max_epochs=1)
single = AutoencoderOutlierDetector(n_estimators=1, max_epochs=1)
# An estimator without the method, and the setting that its message names.
ABSENT = [
    (elbo, "feature_contributions", {"bottleneck": "deterministic"}),
    (elbo, "explain", {"bottleneck": "deterministic"}),
    (plain, "sample", {"bottleneck": "gaussian"}),
    (plain, "quantize", {"bottleneck": "quantized"}),
    (plain, "dequantize", {"bottleneck": "quantized"}),
    (plain, "truncate", {"ordered": True}),
    (plain, "explained_variance_curve", {"ordered": True}),
    (codebook, "component_contributions", {"bottleneck": "deterministic"}),
]


@pytest.mark.parametrize(("model", "method", "setting"), ABSENT)
def test_an_absent_method_names_the_setting_that_brings_it(model, method, setting):
    ((name, value),) = setting.items()
    with pytest.raises(AttributeError, match=f"'{method}': .*{name}={value!r}"):
        getattr(model, method)
    assert callable(getattr(clone(model).set_params(**setting), method))


def test_every_conditional_method_is_tried():
    conditional = {
        name
        for kind in (AutoencoderTransformer, AutoencoderOutlierDetector)
        for base in kind.__mro__
        for name, member in vars(base).items()
        if isinstance(member, type(vars(Lamp)["read"]))
    }
    assert conditional == {method for _, method, _ in ABSENT} | {"p_values"}


def test_absent_p_values_say_what_to_do():
    with pytest.raises(NotFittedError, match="not fitted yet"):
        single.p_values(X)
    detector = AutoencoderOutlierDetector(n_estimators=1, max_epochs=1).fit(X)
    with pytest.raises(AttributeError, match=r"all rows were learnt.*recalibrate\(X\)"):
        detector.p_values(X)


@pytest.mark.parametrize("method", ["feature_contributions", "sample", "quantize"])
def test_methods_are_absent_for_an_invalid_bottleneck(method):
    for model in (AutoencoderOutlierDetector, AutoencoderTransformer):
        assert not hasattr(model(bottleneck=None), method)
