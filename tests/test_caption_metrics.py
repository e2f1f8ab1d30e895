"""CIDEr-D and ROUGE-L against scores of pycocoevalcap 1.2, sums by hand, and invariants."""

import numpy as np
import pytest

from evals.caption_metrics import cider_d, rouge_l

# (candidate, references, CIDEr, ROUGE-L): scores of pycocoevalcap 1.2 on all of them together.
EXAMPLES = [
    (
        "a man rides a wave on a surfboard",
        [
            "a man riding a wave on top of a surfboard",
            "a surfer rides a large wave",
            "a man on a surfboard in the ocean",
        ],
        2.389857004651462,
        0.7624999999999998,
    ),
    (
        "a dog",
        [
            "a brown dog runs across the grass with a ball in its mouth",
            "a dog is playing in a field",
        ],
        0.7242837027973864,
        0.40397350993377484,
    ),
    (
        "two children are playing with a red ball in the park near the old fountain",
        ["two kids play ball"],
        0.12163177461229852,
        0.2350674373795761,
    ),
    (
        "a cat sits on a mat",
        ["a cat sits on a mat", "a cat is sitting on a small mat", "the cat lies on the mat"],
        4.182658927079568,
        1.0,
    ),
    (
        "a plate of food with meat and vegetables",
        ["a white plate topped with meat and vegetables"],
        4.137874816131913,
        0.75,
    ),
    (
        "the the the the the the",
        ["the cat is on the mat", "there is a cat on the mat"],
        0.1837220544927377,
        0.3333333333333333,
    ),
    (
        "train",
        ["a train on the tracks", "train", "a long train is at the station"],
        1.5596177217942484,
        1.0,
    ),
    (
        "a man and a woman and a child and a dog",
        [
            "a man and a dog",
            "a woman and a child and a dog stand on a beach",
            "a family at the beach",
            "people with a dog",
            "a man and a woman and a child",
        ],
        3.204929786562407,
        0.866785079928952,
    ),
    ("completely unrelated words here", ["a bus is parked by the road", "a red bus"], 0.0, 0.0),
    (
        "a large clock tower in front of a building",
        [
            "a building with a large clock tower in front of it",
            "a tall clock tower",
            "a clock on a tower",
        ],
        3.1366927581238366,
        0.7611408199643495,
    ),
    ("on a street a bus red", ["a red bus on a street"], 3.921968084102814, 0.5),
    (
        "a bowl of fruit and a bowl of fruit and a bowl",
        ["a bowl of fruit", "a bowl of fruit on a table", "some fruit in a bowl"],
        1.1313909445747723,
        0.6354166666666666,
    ),
]
CANDIDATES, REFERENCES = [each[0] for each in EXAMPLES], [each[1] for each in EXAMPLES]


def sentences(seed, count):
    """Random captions of a few words with one to five random references each."""
    generator = np.random.default_rng(seed)
    words, p = np.array(list("abcdefghijkl")), 1 / np.arange(1, 13)

    def sentence():
        return " ".join(generator.choice(words, generator.integers(1, 13), p=p / p.sum()))

    references = [[sentence() for _ in range(generator.integers(1, 6))] for _ in range(count)]
    return [sentence() for _ in references], references


def test_scores_equal_pycocoevalcap():
    np.testing.assert_allclose(
        cider_d(CANDIDATES, REFERENCES), [100 * each[2] for each in EXAMPLES], rtol=0, atol=1e-9
    )
    np.testing.assert_allclose(
        rouge_l(CANDIDATES, REFERENCES), [100 * each[3] for each in EXAMPLES], rtol=0, atol=1e-9
    )


@pytest.mark.parametrize("seed", range(3))
def test_scores_of_random_sentences_equal_the_library(seed):
    cider, rouge = (
        pytest.importorskip(f"pycocoevalcap.{name}.{name}") for name in ("cider", "rouge")
    )
    candidates, references = sentences(seed, 100)
    given = (
        dict(enumerate(references)),
        {index: [candidate] for index, candidate in enumerate(candidates)},
    )
    for found, theirs in ((cider_d, cider.Cider()), (rouge_l, rouge.Rouge())):
        np.testing.assert_allclose(
            found(candidates, references), 100 * theirs.compute_score(*given)[1], rtol=0, atol=1e-9
        )


def test_scores_by_hand():
    # "a" is in references of both examples and has weight 0.  Of "a b" and "b", one matches the
    # first candidate fully, the other its one word with weight, and is a word shorter; "a c" has
    # the second's weighted words in another order.
    found = cider_d(["a b", "c a"], [["a b", "b"], ["a c"]])
    np.testing.assert_allclose(found, [1000 / 4 * (2 + np.exp(-1 / 72)) / 2, 1000 / 4], rtol=1e-14)
    # The common subsequence is a c: precision 2/3, recall 2/4.
    np.testing.assert_allclose(
        rouge_l(["a b c"], [["a x c y"]]), 100 * 2.44 * (1 / 3) / (1 / 2 + 1.44 * 2 / 3), rtol=1e-14
    )
    # The greatest precision and recall may be of different references.
    np.testing.assert_allclose(rouge_l(["a b"], [["a", "a b c d"]]), 100)


def test_references_score_highest_and_unrelated_captions_zero():
    _, references = sentences(3, 40)
    same, other = [own[0] for own in references], ["z y x w v"] * len(references)
    np.testing.assert_allclose(rouge_l(same, references), 100)
    for metric in (cider_d, rouge_l):
        np.testing.assert_array_equal(metric(other, references), 0)
        np.testing.assert_array_equal(metric([""] * len(references), references), 0)
    distinct = [f"w{index} x{index} y{index} z{index} v{index}" for index in range(3)]
    np.testing.assert_allclose(cider_d(distinct, [[text] for text in distinct]), 1000)
    longer = [f"{text} and more" for text in distinct]
    assert (cider_d(longer, [[text] for text in distinct]) < 1000).all()


def test_the_order_of_references_and_of_examples_does_not_matter():
    candidates, references = sentences(4, 30)
    turned = candidates[::-1], [own[::-1] for own in references[::-1]]
    for metric in (cider_d, rouge_l):
        scores = metric(candidates, references)
        assert scores.shape == (30,)
        assert len(np.unique(scores)) > 15
        np.testing.assert_allclose(metric(*turned)[::-1], scores, rtol=1e-12)


def test_more_references_never_lower_rouge():
    candidates, references = sentences(5, 30)
    assert (
        rouge_l(candidates, references) >= rouge_l(candidates, [own[:1] for own in references])
    ).all()


def test_a_single_example_has_no_cider():
    np.testing.assert_array_equal(cider_d(["a b c d e"], [["a b c d e"]]), 0)


@pytest.mark.parametrize("metric", [cider_d, rouge_l])
@pytest.mark.parametrize(
    ("candidates", "references", "message"),
    [
        (["a", "b"], [["a"]], "2 candidates, references for 1 examples; expected"),
        (["a", "b"], [["a"], []], r"references for 2 examples; example 1 has \[\]; expected"),
        (["a"], ["a"], "example 0 has 'a'; expected"),
        ([], [], "0 candidates, references for 0 examples; expected"),
    ],
)
def test_candidates_without_references_are_refused(metric, candidates, references, message):
    with pytest.raises(ValueError, match=message):
        metric(candidates, references)
