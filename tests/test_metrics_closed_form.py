"""Frechet distance, Inception Score and pairings of frames against independent computations and known answers."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import scipy.linalg
import scipy.stats
import torch

from magdiff_core.metrics import frechet, inception_score, similarity

TOLERANCE = 1e-6


def features(count, width, seed=0):
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(width, width, generator=generator, dtype=torch.float64)
    return torch.randn(count, width, generator=generator, dtype=torch.float64) @ mixing + seed


def textbook_frechet(one: np.ndarray, other: np.ndarray) -> float:
    root = scipy.linalg.sqrtm(np.cov(one, rowvar=False) @ np.cov(other, rowvar=False))
    mean = one.mean(0) - other.mean(0)
    return float(mean @ mean + np.trace(np.cov(one, rowvar=False) + np.cov(other, rowvar=False) - 2 * root.real))


@pytest.mark.parametrize("width", [1, 7, 40])
def test_frechet_distance_equals_scipys_matrix_root(width):
    one, other = features(200, width, 1), features(150, width, 2)
    expected = textbook_frechet(one.numpy().reshape(200, -1), other.numpy().reshape(150, -1)) if width > 1 else None
    found = frechet.frechet_distance(frechet.moments(one), frechet.moments(other))
    if width == 1:
        # two normal distributions on a line: (m1 - m2)^2 + (s1 - s2)^2
        expected = float((one.mean() - other.mean()) ** 2 + (one.std() - other.std()) ** 2)
    assert found == pytest.approx(expected, rel=TOLERANCE)


def test_frechet_distance_of_diagonal_covariances_is_known():
    mean, other_mean = torch.tensor([1.0, 2.0, 3.0]).double(), torch.tensor([1.0, 0.0, 3.0]).double()
    one, other = torch.diag(torch.tensor([4.0, 9.0, 0.0]).double()), torch.diag(torch.tensor([1.0, 1.0, 0.0]).double())
    # 4 + (2-1)^2 + (3-1)^2
    assert frechet.frechet_distance((mean, one), (other_mean, other)) == pytest.approx(9.0, abs=TOLERANCE)


def test_frechet_distance_of_a_set_to_itself_is_zero_without_full_rank_too():
    for count in (12, 200):
        few = frechet.moments(features(count, 40))
        assert frechet.frechet_distance(few, few) == pytest.approx(0.0, abs=1e-4 * float(few[1].trace()))


def test_frechet_distance_without_full_rank_equals_the_sum_of_singular_values():
    # tr (C1 C2)^(1/2) is the nuclear norm of X1 X2^T for centred rows: no root of a matrix is taken
    one, other = features(9, 40, 3), features(14, 40, 4)
    x, y = one - one.mean(0), other - other.mean(0)
    cross = torch.linalg.svdvals(x @ y.T).sum() / math.sqrt(8 * 13)
    expected = (one.mean(0) - other.mean(0)).square().sum() + x.square().sum() / 8 + y.square().sum() / 13 - 2 * cross
    found = frechet.frechet_distance(frechet.moments(one), frechet.moments(other))
    assert found == pytest.approx(float(expected), rel=1e-6)


def test_frechet_is_symmetric_and_sees_a_shift():
    one, other = frechet.moments(features(100, 8, 1)), frechet.moments(features(100, 8, 2))
    assert frechet.frechet_distance(one, other) == pytest.approx(frechet.frechet_distance(other, one), rel=1e-9)
    shifted = (one[0] + 3.0, one[1])
    assert frechet.frechet_distance(one, shifted) == pytest.approx(8 * 9.0, rel=1e-6)


def test_a_covariance_needs_two_clips():
    with pytest.raises(ValueError, match=r"\[1, 8\].*2 rows"):
        frechet.moments(torch.zeros(1, 8))


def test_warnings_tell_how_many_clips_fvd_needs():
    assert "means nothing" in frechet.count_warning(400, 400)
    assert "2047" in frechet.count_warning(2047, 400) and "too high" in frechet.count_warning(2047, 400)
    assert frechet.count_warning(2048, 400) is None


def test_inception_score_equals_scipys_entropy():
    generator = torch.Generator().manual_seed(5)
    probabilities = torch.randn(40, 11, generator=generator, dtype=torch.float64).mul(3).softmax(1)
    for splits in (1, 4):
        parts = np.array_split(probabilities.numpy(), splits)
        scores = [np.exp(np.mean([scipy.stats.entropy(row, part.mean(0)) for row in part])) for part in parts]
        found = inception_score.inception_score(probabilities, splits)
        assert found == pytest.approx((np.mean(scores), np.std(scores)), abs=TOLERANCE)


def test_inception_score_of_sure_and_unsure_classifiers_is_known():
    # each of 5 classes once and for sure: 5; all alike: 1; a 0 must not give NaN
    assert inception_score.inception_score(torch.eye(5), 1) == pytest.approx((5.0, 0.0), abs=TOLERANCE)
    assert inception_score.inception_score(torch.full((7, 5), 0.2), 1) == pytest.approx((1.0, 0.0), abs=TOLERANCE)
    with pytest.raises(ValueError, match="3 clips cannot be scored in 4 parts"):
        inception_score.inception_score(torch.eye(3), 4)


def test_outputs_are_taken_for_probabilities_only_when_they_are():
    logits = torch.tensor([[2.0, 1.0, -3.0], [0.0, 0.0, 0.0]])
    assert torch.allclose(inception_score.as_probabilities(logits), logits.double().softmax(1))
    probabilities = logits.softmax(1)
    assert torch.equal(inception_score.as_probabilities(probabilities), probabilities)


def test_parts_are_those_of_published_scores_once_there_are_enough_clips():
    assert inception_score.usual_splits(99) == 1 and inception_score.usual_splits(100) == 10


def cosine(one, other):
    return float(np.dot(one, other) / np.linalg.norm(one) / np.linalg.norm(other))


def test_all_pairs_and_consecutive_pairs_equal_plain_loops():
    rows = features(6, 5, 7)
    plain = rows.numpy()
    mean, by_frame = similarity.all_pairs(rows)
    pairs = list(itertools.combinations(range(6), 2))
    assert mean == pytest.approx(np.mean([cosine(plain[i], plain[j]) for i, j in pairs]), abs=TOLERANCE)
    assert by_frame[2] == pytest.approx(np.mean([cosine(plain[2], plain[j]) for j in range(6) if j != 2]), abs=TOLERANCE)
    mean, by_frame = similarity.consecutive_pairs(rows)
    assert mean == pytest.approx(np.mean([cosine(plain[i], plain[i + 1]) for i in range(5)]), abs=TOLERANCE)
    assert math.isnan(by_frame[0]) and by_frame[3] == pytest.approx(cosine(plain[2], plain[3]), abs=TOLERANCE)


def test_the_two_pairings_differ_where_they_should():
    # a clip that jumps once, there and not back: one of 3 consecutive pairs differs, 4 of 6 of all pairs
    rows = torch.tensor([[1.0, 0], [1, 0], [0, 1], [0, 1]])
    assert similarity.consecutive_pairs(rows)[0] == pytest.approx(2 / 3, abs=TOLERANCE)
    assert similarity.all_pairs(rows)[0] == pytest.approx(1 / 3, abs=TOLERANCE)


def test_a_single_frame_has_no_pairs():
    assert math.isnan(similarity.all_pairs(torch.ones(1, 4))[0])
    assert math.isnan(similarity.consecutive_pairs(torch.ones(1, 4))[0])


def test_similarity_with_a_prompt_or_subject_equals_a_plain_loop():
    rows, others = features(4, 5, 8), features(3, 5, 9)
    mean, by_frame = similarity.with_each(rows, others)
    expected = [np.mean([cosine(row, other) for other in others.numpy()]) for row in rows.numpy()]
    assert by_frame == pytest.approx(expected, abs=TOLERANCE) and mean == pytest.approx(np.mean(expected), abs=TOLERANCE)
    rows[1] = math.nan
    mean, by_frame = similarity.with_each(rows, others)
    assert math.isnan(by_frame[1]) and mean == pytest.approx(np.mean([expected[0], *expected[2:]]), abs=TOLERANCE)


def test_mean_and_spread_leave_out_what_has_no_value():
    assert similarity.mean_and_spread([1.0, math.nan, 3.0]) == pytest.approx((2.0, math.sqrt(2.0)))
    assert all(map(math.isnan, similarity.mean_and_spread([math.nan])))
    assert math.isnan(similarity.mean_and_spread([1.0])[1])
