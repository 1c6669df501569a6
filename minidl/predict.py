"""`python -m minidl.predict RUN IMAGE...`: what a trained model takes images for.

The run's folder says which model it was and how its images were prepared; each image is brought to that form, goes through the model
once, and is named with the probabilities of its likeliest classes.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.table import Table

from minidl import backend
from minidl import functions as F
from minidl.autograd import no_grad
from minidl.checkpoint import Checkpoints
from minidl.data import Normalise
from minidl.data.images import read_image
from minidl.display import make_console, percent
from minidl.errors import ConfigError, MinidlError
from minidl.loop import part, to_model
from minidl.nn import Module
from minidl.train import fail, make_model, read_config


def load_run(folder: Path, device: str = "cpu") -> tuple[Module, dict[str, Any]]:
    """The model of a run with the weights of its last checkpoint, ready for evaluation, and the run's config.

    ConfigError or CheckpointError if the folder is not a run's or its checkpoints cannot be read.
    """
    config = read_config(folder)
    model = make_model(config["options"]["model"], tuple(config["input_shape"]), len(config["classes"]), backend.generator(0))
    model.load_state_dict(part(Checkpoints(folder / "checkpoint").latest()[1], "model."))
    return model.to(device=device).eval(), config


@no_grad()
def predict(model: Module, config: dict[str, Any], images: np.ndarray) -> np.ndarray:
    """Probabilities (N, classes) of images (N, C, H, W) with numbers in [0, 1]."""
    if config["normalise"] is not None:
        images = Normalise(config["normalise"]["mean"], config["normalise"]["std"]).apply(images, None)
    outputs = model(to_model(model, images))
    return backend.to_numpy(F.softmax(getattr(outputs, "data", outputs), axis=1))


def main(
    run: Annotated[Path, typer.Argument(help="The folder of a run.")],
    images: Annotated[list[Path], typer.Argument(help="Image files; they are made to fit the model.")],
    top: Annotated[int, typer.Option(min=1, help="How many classes to name.")] = 3,
    invert: Annotated[bool, typer.Option("--invert", help="Dark on light becomes light on dark, as digits were learned.")] = False,
    device: Annotated[str, typer.Option(help="cpu, cuda:0, ...")] = "cpu",
) -> None:
    """Name the classes of image files, with their probabilities."""
    try:
        model, config = load_run(run, backend.named_device(device))
        if len(config["input_shape"]) != 3 or getattr(model, "reconstructs", False):
            raise ConfigError(f"{run}: its model does not name the classes of images", model=config["options"]["model"])
        batch = np.stack([read_image(image, tuple(config["input_shape"])) for image in images])
        probabilities = predict(model, config, 1 - batch if invert else batch)
    except MinidlError as error:
        fail(error)
    console = make_console()
    table = Table(box=None, padding=(0, 2), show_edge=False)
    for head in ("image", "class", "probability", "or"):
        table.add_column(head, justify="right" if head == "probability" else "left")
    for image, row in zip(images, probabilities):
        best = np.argsort(-row)[:top]
        names = [config["classes"][i] for i in best]
        others = ", ".join(f"{name} {percent(row[i])}" for name, i in zip(names[1:], best[1:]))
        table.add_row(str(image), names[0], percent(row[best[0]]), others)
    console.print(table)


if __name__ == "__main__":
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command()(main)
    app()
