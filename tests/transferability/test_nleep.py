"""N-LEEP against scikit-learn's components and mixture followed by LEEP's formula, and values by hand."""

import jax
import numpy as np
import pytest
from sklearn.decomposition import PCA
from sklearn.mixture import GaussianMixture

from tests.transferability.inputs import CASES, draw, gapped
from tests.transferability.test_leep import literal_leep
from tl_jax.transferability import nleep
from tl_jax.utils.errors import UserError

pytestmark = pytest.mark.fast
KEY = jax.random.key(0)


def literal(x, y, components, key):
    seed = int(jax.random.randint(key, (), 0, 2**31 - 1))
    z = PCA(0.8, svd_solver="full").fit_transform(x)
    return literal_leep(GaussianMixture(components, random_state=seed).fit(z).predict_proba(z), y)


@pytest.mark.parametrize("name", ["random", "separable", "rank deficient", "rank deficient and tiny"])
@pytest.mark.parametrize("key", [0, 3])
def test_it_is_leep_on_a_mixtures_posterior(name, key):
    x, y = CASES[name]
    key, components = jax.random.key(key), min(len(y), 5 * len(np.unique(y)))
    assert nleep(x, y, key) == pytest.approx(literal(x, y, components, key), rel=1e-5)
    assert nleep(x, gapped(y), key) == nleep(x, y, key)


def test_by_hand():
    # Two clusters far apart: each has one class, or half of both.
    x = np.concatenate([draw(40, 3, 2, 0.0)[0], 100 + draw(40, 3, 2, 0.0)[0]])
    assert nleep(x, np.repeat([0, 1], 40), KEY, components=2) == pytest.approx(0, abs=1e-9)
    assert nleep(x, np.arange(80) % 2, KEY, components=2) == pytest.approx(np.log(0.5), rel=1e-9)


@pytest.mark.slow
def test_few_examples_and_components_stand_for_many():
    x, y = draw(400, 20, 3, apart=3.0)
    whole, part = nleep(x, y, KEY), nleep(x, y, KEY, max_examples=200, dims=4)
    assert whole != part and part == nleep(x, y, KEY, max_examples=200, dims=4)
    assert part == pytest.approx(whole, abs=0.2)


@pytest.mark.parametrize(
    "changes", [{"share": 0.0}, {"share": 1.1}, {"components": 0}, {"dims": 0}, {"max_examples": 1}]
)
def test_numbers_out_of_range_are_refused(changes):
    with pytest.raises(
        UserError, match=r"nleep: share must be in \(0, 1\], and components, dims and max_examples above 0"
    ):
        nleep(*CASES["separable"], KEY, **changes)
