"""What is said of a model that transformers cannot load."""

from kilopix.pretrained.weights import reason


def test_a_missing_package_is_named_with_its_extra_though_the_message_begins_with_an_empty_line():
    missing = ImportError("\nQwen2VLVideoProcessor requires the Torchvision library.\nSee the website.")
    said = reason(missing)
    assert said.startswith("Qwen2VLVideoProcessor requires the Torchvision library; run `pip install")
    assert "kilopix[captions]" in said


def test_other_faults_are_told_as_they_are():
    assert reason(OSError("no file\nmore")) == "no file."
    assert reason(KeyError()) == "KeyError."
