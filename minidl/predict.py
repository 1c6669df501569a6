"""`python -m minidl.predict RUN IMAGE...`: what a trained model takes images for.

The run's folder says which model it was and how its images were prepared; each image is brought to that form, goes through the model
once, and is named with the probabilities of its likeliest classes.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from minidl import backend
from minidl import functions as F
from minidl.autograd import no_grad
from minidl.data import Normalise
from minidl.data.images import border, read_image
from minidl.display import errors_told, make_console, percent, tell
from minidl.errors import ConfigError, DataError
from minidl.loop import to_model
from minidl.nn import Module
from minidl.record import read_config
from minidl.task import make_model
from minidl.train import weights_of

TOGETHER = 64           # images that go through the model at once


def load_run(folder: Path, device: str = "cpu") -> tuple[Module, dict[str, Any]]:
    """The model of a run with the weights of its last checkpoint, ready for evaluation, and the run's config.

    CheckpointError if the folder is not a run's or its checkpoints cannot be read.
    """
    config = read_config(folder)
    model = make_model(config["options"]["model"], tuple(config["input_shape"]), len(config["classes"]), backend.generator(0))
    model.load_state_dict(weights_of(folder)[1])
    return model.to(device=device).eval(), config


@no_grad()
def predict(model: Module, config: dict[str, Any], images: np.ndarray) -> np.ndarray:
    """Probabilities (N, classes) of images (N, C, H, W) with numbers in [0, 1]."""
    if config["normalise"] is not None:
        images = Normalise(**config["normalise"]).apply(images, None)
    outputs = model(to_model(model, images, config["options"].get("dtype")))
    return backend.to_numpy(F.softmax(backend.wide(getattr(outputs, "data", outputs)), axis=1))


def main(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="The folder of a run.")],
    images: Annotated[list[Path], typer.Argument(metavar="IMAGE", help="Image files; they are made to fit the model.")],
    top: Annotated[int, typer.Option(min=1, metavar="N", help="How many classes to name.")] = 3,
    invert: Annotated[bool, typer.Option("--invert", help="Dark on light becomes light on dark, as digits were learned.")] = False,
    device: Annotated[str, typer.Option(metavar="NAME", help="cpu, cuda:0, ...")] = "cpu",
) -> None:
    """Name the classes of image files, with their probabilities. Exit status 1 if one of them could not be read."""
    with errors_told():
        model, config = load_run(run, backend.named_device(device))
        shape = tuple(config["input_shape"])
        if getattr(model, "reconstructs", False) or len(shape) != 3:
            learned = "to reconstruct its input" if len(shape) == 3 else "vectors, not images"
            raise ConfigError(f"{run}: this model has learned {learned}, and cannot name images", model=config["options"]["model"])
        width, longest = max(len(str(image)) for image in images), max(map(len, config["classes"]))
        readable = []
        for image in images:
            try:
                x = read_image(image, shape)
                x = 1 - x if invert else x
                readable.append((image, x))
                if abs(border(x) - config.get("ground", border(x))) > 0.5:
                    learned = "light on dark" if config["ground"] < 0.5 else "dark on light"
                    make_console(stderr=True).print(f"{image} is not {learned}, as the images were that this model has learned: try it "
                                                    f"{'without' if invert else 'with'} --invert.", highlight=False, soft_wrap=True)
            except DataError as error:
                tell(error)
        for start in range(0, len(readable), TOGETHER):
            some = readable[start:start + TOGETHER]
            for (image, _), row in zip(some, predict(model, config, np.stack([x for _, x in some]))):
                best = [f"{config['classes'][k]:<{longest}} {percent(row[k]):>8}" for k in np.argsort(-row, kind="stable")[:top]]
                make_console().print(f"{image!s:<{width}}   {'   '.join(best)}", highlight=False, markup=False, soft_wrap=True)
        raise SystemExit(int(len(readable) < len(images)))


if __name__ == "__main__":
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)
    app.command(context_settings={"help_option_names": ["-h", "--help"]})(main)
    app()
