"""Advantages against a table worked by hand, and against sums written out."""

import jax.numpy as jnp
import numpy as np
import pytest

from tl_jax.rl.ppo import compute_advantages

pytestmark = pytest.mark.fast


def test_a_table_worked_by_hand():
    """gamma 0.5, lambda 0.5, one world, four steps; the episode terminates at step 2 and its time is up at step 3.

    step  reward  value  next   end         delta                      advantage
    3     2       1      4      truncated   2 + 0.5 * 4 - 1 = 3        3
    2     1       2      9      terminated  1 - 2 = -1                 -1
    1     0       4      2                  0 + 0.5 * 2 - 4 = -3       -3 + 0.25 * -1 = -3.25
    0     1       2      4                  1 + 0.5 * 4 - 2 = 1        1 + 0.25 * -3.25 = 0.1875
    """
    column = lambda *values: jnp.array(values)[:, None]  # noqa: E731
    found = compute_advantages(
        column(1.0, 0.0, 1.0, 2.0), column(2.0, 4.0, 2.0, 1.0), column(4.0, 2.0, 9.0, 4.0),
        column(False, False, True, False), column(False, False, False, True), 0.5, 0.5,
    )  # fmt: skip
    np.testing.assert_allclose(found[:, 0], [0.1875, -3.25, -1.0, 3.0])


@pytest.mark.parametrize("gae_lambda", [0.0, 0.7, 1.0])
def test_sums_written_out(gae_lambda):
    rng = np.random.default_rng(0)
    steps, worlds, gamma = 12, 3, 0.9
    rewards, values, following = (rng.normal(size=(steps, worlds)).astype(np.float32) for _ in range(3))
    ends = rng.integers(0, 6, (steps, worlds))
    terminated, truncated = ends == 0, ends == 1
    found = compute_advantages(
        *map(jnp.asarray, (rewards, values, following, terminated, truncated)), gamma, gae_lambda
    )
    for world in range(worlds):
        for first in range(steps):
            total, weight = 0.0, 1.0
            for t in range(first, steps):
                after = 0.0 if terminated[t, world] else following[t, world]
                total += weight * (rewards[t, world] + gamma * after - values[t, world])
                weight *= gamma * gae_lambda
                if terminated[t, world] or truncated[t, world]:
                    break
            assert found[first, world] == pytest.approx(total, rel=1e-4, abs=1e-5)
