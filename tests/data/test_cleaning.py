import pytest

from kilopix.data.cleaning import clean, published, recommended


@pytest.mark.parametrize(
    ("answer", "caption"),
    [
        ("user\n\n\nDescribe this image\nassistant\n\n\nA fox. It", "A fox."),
        (
            "user Describe this image assistant A shop assistant hands over a loaf. The",
            "A shop assistant hands over a loaf.",
        ),
        ("The assistant of the dentist smiles. She", "The assistant of the dentist smiles."),
        ("assistant\n\nA bowl.", "A bowl."),
        (
            "User interface of an assistant app. It is blue.",
            "User interface of an assistant app. It is blue.",
        ),
        ("First line.\nSecond line.\n\nThird", "First line. Second line."),
        ("It costs 3.5 euros. The sign is", "It costs 3.5 euros."),
        ("It costs 3.5 euros and", "It costs 3.5 euros."),
        ("A man, Mr. Smith, waves. He wears a", "A man, Mr. Smith, waves."),
        ("A poster of Dr. No and a", "A poster of Dr. No."),
        ("A cup of vitamin C.", "A cup of vitamin C."),
        ('A sign reads "Stop." Behind it', 'A sign reads "Stop."'),
        ("Things seen here:\n1. A **red** cup.\n2.", "Things seen here: 1. A red cup."),
        ("## Description\n- A fox!\n- Snow.", "Description A fox! Snow."),
        ("A dog runs.<|eot_id|><|im_end|>", "A dog runs."),
        ("", ""),
        ("assistant", ""),
        (" ... ", ""),
        ("A tower without any full stop", "A tower without any full stop."),
    ],
)
def test_recommended_cleaning_keeps_whole_sentences(answer: str, caption: str):
    assert recommended(answer) == caption


def test_the_two_rules_differ_where_the_published_one_loses_text():
    answer = "The shop assistant hands over 3.5 loaves"
    assert clean(answer, "published") == published(answer) == " hands over 3."
    assert clean(answer, "recommended") == "The shop assistant hands over 3.5 loaves."
