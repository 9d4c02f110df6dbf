import pytest

from edge_atp.evaluation.answers import exact_match, normalise_answer, score_answer, token_f1


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("  Red Box. ", "red box"),
        ("middle shelf ,slot 3", "middle shelf, slot 3"),
        ("1,3", "1, 3"),
        ("top shelf: empty;floor: none.", "top shelf: empty; floor: none"),
    ],
)
def test_normalised_answers(answer, expected):
    assert normalise_answer(answer) == expected


def test_exact_match_is_strict_about_words():
    assert exact_match("Red box", "red box.") == 1.0
    assert exact_match("a red box", "red box") == 0.0
    assert exact_match("", "red") == 0.0


def test_token_f1_by_hand():
    # 3 of 4 words found, 3 of 6 words right: P = 1/2, R = 3/4, F1 = 0.6.
    assert token_f1("a red box and a drum", "a red box here") == pytest.approx(0.6)
    # Repeated words count as often as they are expected.
    assert token_f1("red red red", "red box") == pytest.approx(
        2 * (1 / 3 * 1 / 2) / (1 / 3 + 1 / 2)
    )
    assert token_f1("", "red") == 0.0
    assert token_f1("", "") == 1.0


def test_the_familys_metric_decides():
    assert score_answer("red drum", "red box", "exact") == 0.0
    assert score_answer("red drum", "red box", "token_f1") == pytest.approx(0.5)
