"""What a model says of what it knows: its world's words, or the images and captions of its owner."""

import json
import random
import re
from pathlib import Path

import httpx
import pytest
from gradio_client import Client as GradioClient
from PIL import Image, ImageDraw
from safetensors import safe_open
from safetensors.torch import save_file

from kilopix import Generator, PromptWarning
from kilopix.data.captions import aio, cropped, short_with_inset, with_inset
from kilopix.data.cutmix import choose_crop, choose_paste
from kilopix.data.prompts_to_try import prompts_to_try
from kilopix.data.trained_on import TrainedOn
from kilopix.data.world.captions import short_caption, structured_caption
from kilopix.data.world.objects import HUES, OBJECTS, training_colors
from kilopix.data.world.scenes import one_object_scene
from kilopix.data.world.words import BEYOND, WorldWords
from kilopix.evaluation.geneval_prompts import world_prompts
from kilopix.evaluation.placed import placed
from kilopix.recipe import load_recipe
from kilopix.stages import caption, encode, train
from kilopix.training.checkpoint import read_weights
from live_server import Live, post
from tiny import TINY, Cli

MINI = tuple(item.name for item in OBJECTS[:12])
SMALL = [setting for setting in TINY if not setting.startswith(("world.", "data.augment", "evaluation."))]


def captions_of_the_world(names: tuple[str, ...], count: int) -> list[str]:
    """Long and short captions of plain, CutMix and cropped images, and the prompts of what is scored."""
    rng = random.Random(len(names))
    scenes = [one_object_scene(names[k % len(names)], 3, "train", str(k)) for k in range(count)]
    long = [structured_caption(scene, k) for k, scene in enumerate(scenes)]
    short = [short_caption(scene, k) for k, scene in enumerate(scenes)]
    texts = [*long, *short, *map(aio, names)]
    for i in range(count):
        paste, other = choose_paste("all", 64, rng), rng.randrange(count)
        x0, y0, x1, y1 = (v / 64 for v in paste.box)
        box = (x0, y0, x1, y1)
        texts += [with_inset(long[i], long[other], box), short_with_inset(short[i], short[other], box, rng)]
        texts += [cropped(long[i], choose_crop(rng)), cropped(short[i], choose_crop(rng))]
    colored = [item.name for item in OBJECTS if item.recolorable and item.name in names]
    seen = {(name, color) for name in colored for color in training_colors(name) if color}
    prompts = [p for p in world_prompts(names, colored, HUES, seen, 60, 0) if p.tag != "counting"]
    return [*texts, *(prompt.text for prompt in prompts), *map(placed, prompts)]


@pytest.mark.parametrize("count", [3, 12, 64])
def test_no_prompt_that_captions_of_the_world_hold_is_warned_of(count: int):
    names = tuple(item.name for item in OBJECTS[:count])
    words = WorldWords(names)
    warned = {text: note for text in captions_of_the_world(names, 400) if (note := words.note([text]))}
    assert not warned, next(iter(warned.items()))


@pytest.mark.parametrize(
    "prompt",
    [
        "PENGUINS and a pizza!",
        "Please, show me the cat's umbrella.",
        "gray airplanes, in the center of the picture",
        "an orange cat beside... a small, colored blue car",
        "a close-up photograph of a dark red car",
        "the umbrella is pink and the penguin is purple, white and orange",
        "a cat on a blue background, a banana on pale blue backgrounds",
        "",
        "🐧",
    ],
)
def test_plurals_articles_spelling_and_punctuation_are_no_reason_to_warn(prompt: str):
    assert WorldWords(MINI).note([prompt]) == ""


@pytest.mark.parametrize(
    ("prompt", "told"),
    [
        ("a dog on the moon", '"dog", "moon".'),
        ("a golden retriever puppy, in tall grass", '"golden retriever puppy", "tall grass".'),
        ("three cats", '"three".'),
        ("Ein Hund", '"Ein Hund".'),
        ("a green penguin", '"green penguin" (penguins are purple, white and orange there).'),
        ("the small penguins are green", '"green penguin" (penguins are purple, white and orange there).'),
        ("a cat in green", '"green cat" (cats are orange and brown there).'),
        ("a white and black umbrella", '"white umbrella" (umbrellas are red, orange,'),
        ("a cat on a purple background", '"purple background" (backgrounds are white,'),
        ("a soccer ball", '"soccer ball".'),
    ],
)
def test_what_is_beyond_the_world_is_named_in_one_line(prompt: str, told: str):
    note = WorldWords(MINI).note(["a photo of a cat", prompt])
    assert note.startswith(f"{BEYOND}{told}")
    assert "\n" not in note
    if "(" not in told:
        assert "It knows car, cat, umbrella," in note
        assert "the colours red, orange," in note
        assert "backgrounds in white," in note


def test_many_strange_words_are_still_one_line():
    note = WorldWords(MINI).note([f"cat, zy{chr(97 + i)}, cat" for i in range(26)] + ["x" * 4000])
    assert "19 more" in note
    assert len(note) < 700


def test_a_model_of_bare_class_names_knows_no_colours():
    words = WorldWords(MINI, colored=False)
    assert words.note(["An image of a cat.", "a photo of two"]) == words.note(["two"])
    assert words.note(["a red cat"]).startswith(f'{BEYOND}"red".')


def test_sample_warns_once_on_stderr_and_not_of_what_is_known(cli: Cli, tmp_path: Path):
    call = ("sample", "mini", "--steps", "1", "-n", "2")
    done = cli(*call, "a dog on the moon", "a dog", "a penguin", "--out", tmp_path / "strange")
    assert done.code == 0
    assert done.err.count(BEYOND) == 1
    assert '"dog", "moon"' in done.err
    assert BEYOND not in done.out
    done = cli(*call, "a penguin and two", "a {green|blue} car", "--out", tmp_path / "two")
    assert '"two"' in done.err
    assert "car" not in done.err.split("It knows")[0]
    assert BEYOND not in cli(*call, "a penguin", "a {green|blue} car", "--out", tmp_path / "known").err


def test_python_warns_with_a_class_of_its_own(recwarn: pytest.WarningsRecorder):
    generator = Generator.from_pretrained("mini", "cpu")
    with pytest.warns(PromptWarning, match='"green penguin"') as caught:
        generator(["a green penguin", "a penguin"], num_images=2, steps=1)
    assert len(caught) == 1
    generator("a penguin", steps=1)
    assert not [one for one in recwarn if one.category is PromptWarning]


def test_the_rest_answer_tells_in_a_field_that_is_described(client: httpx.Client):
    strange = post(client, prompt="a dog on the moon", n=2, steps=1).json()
    assert [text.split(". ")[0] for text in strange["warnings"]] == [f'{BEYOND}"dog", "moon"']
    assert post(client, prompt="a photo of a cat", steps=1).json()["warnings"] == []
    answer = client.get("/openapi.json").json()["components"]["schemas"]["PictureAnswer"]
    assert "never taught" in answer["properties"]["warnings"]["description"]


def test_the_page_tells_beside_the_images_and_suggests_what_it_knows(live: Live):
    page = GradioClient(live.url, verbose=False)

    def shown(prompt: str) -> str:
        return page.predict(prompt, 1, 0, False, "euler", 1, 3.0, "", "run", api_name="/make")[0]

    strange = shown("a dog on <b>the</b> moon")
    assert strange.count("Beyond this model") == 1
    assert "kp-warning" in strange
    assert "Beyond this model" not in shown("a photo of a cat")
    trained_on = live.worker.models["run"].generator.trained_on
    assert trained_on.objects == list(OBJECTS[:4])
    assert not trained_on.note(prompts_to_try(trained_on))


def test_prompts_to_try_of_the_world_are_of_the_kinds_that_were_measured_to_work():
    prompts = prompts_to_try(TrainedOn.by_recipe("structured", 12))
    assert len(set(prompts)) == 10
    assert not [text for text in prompts if re.search(r"\b(two|three|four|left|right|above|below)\b", text)]
    assert "a photo of a penguin and a pizza" in prompts


def draw(folder: Path, classes: tuple[str, ...], count: int, seed: int) -> None:
    """Class folders with images, and a captions file beside each image."""
    rng = random.Random(seed)
    for name in classes:
        (folder / name).mkdir(parents=True)
        for i in range(count):
            image = Image.new("RGB", (48, 48), (rng.randrange(256), 200, 220))
            x = rng.randrange(4, 20)
            ImageDraw.Draw(image).ellipse((x, x, x + 20, x + 20), fill=(200, rng.randrange(256), 20))
            image.save(folder / name / f"{i}.png")
            text = f'A {name} called "{i}", painted | with [care] and patience.'
            (folder / name / f"{i}.txt").write_text(text, encoding="utf-8")


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on thirty images of one's own, with captions of one's own, and all that the commands make."""
    folder = tmp_path_factory.mktemp("own")
    draw(folder / "train", ("robot", "house boat"), 15, 0)
    draw(folder / "val", ("robot", "house boat"), 8, 1)
    recipe = load_recipe("mini", [*SMALL, "preview.every=96", "preview.steps=1", "preview.seeds=1"])
    caption.run(folder / "train", folder / "captions.parquet", "given")
    caption.run(folder / "val", folder / "held_out.parquet", "given")
    encode.run(folder / "captions.parquet", folder / "shards", recipe, device="cpu")
    assert train.run(folder / "shards", folder / "run", recipe, "cpu")
    return folder


def test_a_run_knows_its_images_classes_captions_and_who_wrote_them(own: Path):
    told = json.loads((own / "run" / "recipe.json").read_text(encoding="utf-8"))["trained_on"]
    assert told == read_weights(own / "run" / "model.safetensors")[1]["trained_on"]
    trained_on = Generator.from_pretrained(own / "run", "cpu").trained_on
    assert trained_on.model_dump(mode="json") == told
    assert (trained_on.images, trained_on.augmented, trained_on.captioner) == (30, 0, "given")
    assert set(trained_on.classes) == {"robot", "house boat"}
    assert not trained_on.world
    written = {file.read_text(encoding="utf-8") for file in (own / "train").rglob("*.txt")}
    assert set(trained_on.captions) <= written
    assert {"robot" in caption for caption in trained_on.captions} == {True, False}
    for count in (2, 3, 10):
        prompts = prompts_to_try(trained_on, count)
        assert len(prompts) == count
        assert set(prompts) <= written
        assert {"robot" in prompt for prompt in prompts} == {True, False}
    assert trained_on.note(["a dog on the moon"]) == ""


def test_sheets_of_a_run_show_what_it_is_trained_on(own: Path):
    written = {file.read_text(encoding="utf-8") for file in (own / "train").rglob("*.txt")}
    with safe_open(own / "run" / "previews" / "prompts.safetensors", framework="pt") as file:
        *prompts, negative = json.loads(file.metadata()["texts"])
    assert negative == ""
    assert len(prompts) == 3
    assert set(prompts) <= written
    assert len(list((own / "run" / "previews").glob("*.png"))) == 1


def test_evaluate_skips_the_tasks_of_a_world_that_the_model_never_saw(own: Path, cli: Cli):
    held_out, out = own / "held_out.parquet", own / "scores"
    done = cli("evaluate", own / "run", held_out, "--out", out, "--device", "cpu")
    assert done.code == 0, done.err
    line = next(line for line in done.out.splitlines() if "six tasks: skipped" in line)
    assert "house boat" in line
    assert "kilopix fidelity" in line
    assert "kilopix geneval" in line
    card = json.loads((out / "card.json").read_text(encoding="utf-8"))
    assert [score["name"] for score in card["scores"]] == ["KID"]
    assert [left["name"] for left in card["left_out"]] == ["six tasks"]
    assert card["images"] == 16
    assert not (out / "judged.jsonl").exists()


def test_report_and_model_card_speak_of_ones_own_images(own: Path, cli: Cli):
    cli("evaluate", own / "run", own / "held_out.parquet", "--out", own / "scores", "--device", "cpu")
    page = own / "report.html"
    assert cli("report", own / "run", page, "--scores", own / "scores").code == 0
    text = re.sub(r"<[^>]*>", " ", page.read_text(encoding="utf-8"))
    assert "What a model has learnt from 30 images, each seen 3.2 times" in text
    assert re.search(r"Captions\s+given", text)
    assert re.search(r"Augmented pictures\s+none", text)
    assert "judge of the embedded world" not in text
    done = cli("export", own / "run", own / "exported", "--device", "cpu")
    assert done.code == 0, done.err
    card = (own / "exported" / "README.md").read_text(encoding="utf-8")
    assert "| KID |" in card
    assert "penguin" not in card
    assert "| images | 30 images, each seen 3.2 times, in batches of 16 |" in card
    assert "| captions | given |" in card
    assert "2: house boat, robot" in card or "2: robot, house boat" in card
    assert 'generator("A house boat called \\"' in card
    assert "painted \\| with \\[care\\]" in card
    again = Generator.from_pretrained(own / "exported", "cpu").trained_on
    assert again == Generator.from_pretrained(own / "run", "cpu").trained_on


def test_a_card_takes_no_scores_of_other_weights(own: Path, tiny_demo: Path, tmp_path: Path, cli: Cli):
    run = tmp_path / "run"
    run.mkdir()
    tensors, header = read_weights(own / "run" / "model.safetensors")
    weights = {key: value.clone() for key, value in tensors.items()}
    next(iter(weights.values())).add_(1)
    save_file(weights, run / "model.safetensors", {key: json.dumps(value) for key, value in header.items()})
    (run / "codec.safetensors").write_bytes((own / "run" / "codec.safetensors").read_bytes())
    (tmp_path / "scores").mkdir()
    (tmp_path / "other").mkdir()
    card = (tiny_demo / "scores" / "card.json").read_text(encoding="utf-8")
    (tmp_path / "scores" / "card.json").write_text(card, encoding="utf-8")
    (tmp_path / "other" / "card.json").write_text("[]", encoding="utf-8")
    assert cli("export", run, tmp_path / "out", "--device", "cpu").code == 0
    assert "None were measured" in (tmp_path / "out" / "README.md").read_text(encoding="utf-8")


def test_runs_of_earlier_versions_still_load_and_speak_of_what_their_recipe_says(own: Path, tmp_path: Path):
    tensors, header = read_weights(own / "run" / "model.safetensors")
    del header["trained_on"]
    run = tmp_path / "run"
    run.mkdir()
    save_file(tensors, run / "model.safetensors", {key: json.dumps(value) for key, value in header.items()})
    trained_on = Generator.from_pretrained(run, "cpu").trained_on
    assert trained_on.world
    assert trained_on.images is None
    assert trained_on.seen(5000) == "5,000 images seen"


def test_the_world_is_known_by_its_shards_and_not_by_the_recipe(tiny_demo: Path):
    trained_on = Generator.from_pretrained(tiny_demo / "run", "cpu").trained_on
    assert trained_on.world
    assert (trained_on.images, trained_on.augmented, trained_on.captioner) == (48, 48, "structured")
    assert [item.name for item in trained_on.objects] == [item.name for item in OBJECTS[:4]]
    assert Generator.from_pretrained("mini", "cpu").trained_on.world
