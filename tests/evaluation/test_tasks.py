import pytest

from kilopix.evaluation.geneval import Clause, GenevalOptions, Prompt
from kilopix.evaluation.statistics import bootstrap
from kilopix.evaluation.tasks import TaskScore, observations, score_images
from kilopix.types import Detection, UserError

CUP = Prompt("single_object", "a photo of a cup", (Clause("cup", 1),))
DOG = Prompt("single_object", "a photo of a dog", (Clause("dog", 1),))
RED = Prompt("colors", "a photo of a red cup", (Clause("cup", 1, "red"),), seen=True)
BLUE = Prompt("colors", "a photo of a blue cup", (Clause("cup", 1, "blue"),), seen=False)
RED_CUP = [Detection("cup", (0.0, 0.0, 9.0, 9.0), 0.9, "red")]


@pytest.fixture
def results():
    prompts = [CUP, CUP, DOG, DOG, RED, BLUE, BLUE]
    found = [RED_CUP, [], [], [], RED_CUP, RED_CUP, RED_CUP]
    return score_images(prompts, found)


def test_images_prompts_and_tasks_are_averaged_apart(results):
    assert results.correct_images == 2 / 7
    assert results.correct_prompts == 2 / 4
    assert results.tasks == (TaskScore("single_object", 1 / 4, 4, 2), TaskScore("colors", 1 / 3, 3, 2))
    assert results.overall == (1 / 4 + 1 / 3) / 2
    assert [verdict.correct for verdict in results.verdicts] == [True, *[False] * 3, True, False, False]


def test_the_color_tasks_are_split_by_what_training_has_shown(results):
    assert results.by_seen == (TaskScore("colors", 0.0, 2, 1, False), TaskScore("colors", 1.0, 1, 1, True))


def test_the_bootstrap_sees_the_same_scores(results):
    assert bootstrap(observations(results), resamples=50).value == pytest.approx(results.overall)
    assert bootstrap(observations(results, "colors"), resamples=50).value == pytest.approx(1 / 3)
    assert bootstrap(observations(results, "colors", seen=False), resamples=50).value == 0
    with pytest.raises(UserError, match="at least one picture"):
        observations(results, "counting")


def test_options_reach_the_judge():
    assert score_images([CUP], [RED_CUP], GenevalOptions(threshold=0.95)).overall == 0


def test_lists_of_different_lengths_are_refused():
    with pytest.raises(UserError, match="1 prompts and 0 lists"):
        score_images([CUP], [])
    with pytest.raises(UserError, match="0 prompts"):
        score_images([], [])
