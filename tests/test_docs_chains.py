"""The chains of commands in the documentation leave out no step.

What a command reads, one before it has written, with the recipe, the size and the captions that belong to it.
"""

import re

import pytest

from kilopix.recipe import find_recipe, load_recipe
from test_docs import COMMANDS, blocks, lines
from test_docs_numbers import section


def steps(name: str, title: str) -> list[tuple[str, dict[str, object]]]:
    """The commands of the first shell block under a heading: their names, and what they are given."""
    (block, *_) = [b for b in blocks("sh", only=name) if b.text in section(name, title)]
    found = []
    for words in lines(block):
        if words[0] != "kilopix":
            continue
        with COMMANDS.commands[words[1]].make_context(words[1], words[2:]) as context:  # pyright: ignore[reportAttributeAccessIssue]
            found.append((words[1], dict(context.params)))
    return found


CHAINS = {
    "recipes.md": ("## The whole chain", 15),
    "data.md": ("## The steps", 6),
}
"""Pages with a chain, its heading, and how many commands it has at least."""


@pytest.mark.parametrize("name", sorted(CHAINS))
def test_a_chain_leaves_out_no_step(name: str):
    title, least = CHAINS[name]
    chain = steps(name, title)
    assert len(chain) >= least
    made: dict[str, dict[str, object]] = {}  # what a command wrote, to what it was given
    for command, given in chain:
        out = str(given.get("out", ""))
        if command == "caption":
            assert given["captioner"] != "aio", "the chain is of long captions"
            images = str(given["images"])
            assert images in made or not images.endswith(".parquet"), f"{images}: nothing has made it"
        if command in ("augment", "encode"):
            assert str(given["manifest"]) in made, given
        if command == "augment":
            out += "/manifest.parquet"
            made[str(given["out"])] = given
        if command == "encode":
            encoded_whole(given, made)
        if command == "train":
            trained_whole(given, made)
        if command in ("verify", "inspect"):
            assert str(given["shards"]) in made
        made[out] = {"command": command} | given
    if name == "recipes.md":
        trained = [given["recipe"] for command, given in chain if command == "train"]
        assert trained == ["dit_i_256_ta_cutmix", "dit_i_512", "dit_i_1024", "dit_i_aesthetic"]


def encoded_whole(given: dict[str, object], made: dict[str, dict[str, object]]) -> None:
    """Encoding gets the CutMix images of its recipe, of its size, captioned as the plain images are."""
    recipe = load_recipe(str(given["recipe"]))
    if not recipe.objective.augment_probability:
        return
    augmented = made[str(given["augmented"])]
    assert augmented["command"] == "caption", f"{given['augmented']}: captions of CutMix images are left out"
    plain = made[str(given["manifest"])]
    assert augmented["captioner"] == plain["captioner"]
    assert made[str(augmented["images"])]["size"] == recipe.data.image_size
    assert made[str(augmented["images"])]["kind"] == recipe.data.augment.kind


def trained_whole(given: dict[str, object], made: dict[str, dict[str, object]]) -> None:
    """Training gets shards of its own recipe, and the run that the recipe begins from."""
    assert made[str(given["shards"])]["recipe"] == given["recipe"]
    begun = load_recipe(str(given["recipe"])).training.start_from
    assert not begun or begun in made, (
        f"{given['recipe']} begins from {begun}, which is not trained before it"
    )


def test_the_chain_for_a_cluster_captions_cutmix_images():
    for block in blocks("sh", only="clusters.md"):
        for words in lines(block):
            if "--augmented" in words:
                name = words[words.index("--augmented") + 1]
                assert re.search(rf"kilopix caption \S+/manifest\.parquet {name}", block.text), block.where


def test_the_aesthetic_stage_at_1024_pixels_has_the_settings_of_the_run_that_it_begins_from():
    text = section("recipes.md", "## The whole chain")
    found = re.findall(r"`-r (\w+_aesthetic) ([^`]+)`.*?`--start-from runs/(\w+)`", text)
    assert [name for name, _, _ in found] == ["dit_i_aesthetic", "cad_i_aesthetic"]
    for name, settings, begun in found:
        recipe, before = load_recipe(name, settings.split()), load_recipe(begun)
        assert find_recipe(begun).is_file()
        assert recipe.data.image_size == before.data.image_size
        assert recipe.objective.time_shift == before.objective.time_shift
        if recipe.model.kind == "rin":
            assert recipe.model == before.model
