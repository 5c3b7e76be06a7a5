"""Prompts to longer prompts: a language model writes out what GenEval's plain prompts leave open.

In: GenEval's prompts, or a file with one a line, and an instruct model, local or served. Out: one file of
JSON lines, which `kilopix sample-benchmark --lengthened` takes.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from kilopix.artefacts.locks import owns
from kilopix.data.lines import LineParts, MakeLines, finished_lines, make_lines
from kilopix.english import counted
from kilopix.evaluation.geneval_prompts import official_prompts
from kilopix.evaluation.lengthened import INSTRUCTION, Lengthened, lengthened_from_lines
from kilopix.jobs import OUT, PARTS, open_job
from kilopix.pretrained.instruct import InstructConfig, load_instruct
from kilopix.prompt_files import read_prompts
from kilopix.runtime import Line, pick_device, read_lines, remove_folder, say, sha256_of_text, write_lines
from kilopix.types import UserError

PER_PART = 16


@owns("out", file=True)
def run(
    out: Path,
    model: InstructConfig,
    prompts: Path | None = None,
    devices: Sequence[str] = ("auto",),
    overwrite: bool = False,
) -> Lengthened:
    """Lengthen every prompt once; the same command again goes on, or says that it is done."""
    texts = read_prompts(prompts) if prompts else [prompt.text for prompt in official_prompts()]
    texts = list(dict.fromkeys(texts))
    job = {
        "stage": "lengthen",
        "model": model.model_dump(mode="json"),
        "prompts": sha256_of_text("\n".join(texts)),
        "instruction": sha256_of_text(INSTRUCTION),
    }
    if done := finished_lines(out, job, len(texts), overwrite, OUT):
        say(f"{out}: already complete, {counted(len(done[1]), 'prompt')}.")
        return lengthened_from_lines([done[0], *done[1]], str(out))
    folder = out.with_name(f".{out.stem}.parts")
    open_job(folder, PARTS, job, overwrite, shown=out)
    parts = LineParts(folder, -(-len(texts) // PER_PART))
    # A server is asked many things at once by one process.
    where = ["cpu"] if model.kind == "server" else [pick_device(device) for device in devices]
    make_lines(parts, Lengthen(texts, model), "lengthen", len(texts), where, "prompt")
    lines = list(parts.lines())
    models = {line["model_fingerprint"] for line in lines}
    if len(models) > 1:
        raise UserError(f"{folder}: was begun with other weights; delete it and run the command again.")
    header = {"model": model.name, "model_fingerprint": models.pop(), "instruction": INSTRUCTION, "job": job}
    write_lines(out, [header, *({k: line[k] for k in ("prompt", "lengthened")} for line in lines)])
    remove_folder(folder)
    say(f"{out}: {counted(len(texts), 'prompt')} lengthened by {model.name}.")
    return lengthened_from_lines(read_lines(out), str(out))


@dataclass(frozen=True)
class Lengthen:
    """Asks the model; a value, so that it can be sent to another process."""

    texts: list[str]
    model: InstructConfig

    def load(self, device: str) -> MakeLines:
        """Load the model; the function returned lengthens the prompts of one part."""
        model = load_instruct(self.model, device)

        def make(part: int) -> list[Line]:
            some = self.texts[part * PER_PART : (part + 1) * PER_PART]
            answers = model.answer([INSTRUCTION.format(prompt=text) for text in some])
            for text, answer in zip(some, answers, strict=True):
                if not answer:
                    raise UserError(f"{model.name}: answered nothing to the prompt {text!r}.")
            return [
                {
                    "prompt": text,
                    "lengthened": " ".join(answer.split()),
                    "model_fingerprint": model.fingerprint,
                }
                for text, answer in zip(some, answers, strict=True)
            ]

        return make
