"""Own data in three lines: a folder of images, a pandas frame, a torch data set, arrays; then a stream of each.

    python examples/own_data.py
makes small examples of each in a temporary folder. From the shell the same is
    clenv run clenv/Split-v0 er --scenario.data path/to/folder
    clenv run clenv/Permuted-v0 er --scenario.data path/to/data.npz
    clenv run clenv/Split-v0 er --scenario.data mymodule:my_data  # a data set, or a function that returns one
"""

import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from PIL import Image
from sklearn.datasets import load_digits
from torch.utils.data import TensorDataset

import clenv
from clenv.scenarios import from_dataset, from_folder, from_frame, permuted, split


def folder_of_images(folder: Path) -> Path:
    """Write the digits as a folder of PNGs for each class."""
    digits = load_digits()
    for number, (image, label) in enumerate(zip(digits.images[:600], digits.target[:600], strict=True)):
        place = folder / str(label)
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray((image * 15).astype(np.uint8)).save(place / f"{number}.png")
    return folder


def frame_with_texts() -> pd.DataFrame:
    """Return a frame with numbers, texts and gaps, whose label depends on all of them."""
    rng = np.random.default_rng(0)
    frame = pd.DataFrame({"size": rng.normal(50, 10, 800), "colour": rng.choice(["red", "green"], 800)})
    frame["kind"] = np.where(frame["size"] > 50, "large ", "small ") + frame["colour"]
    frame.loc[::25, "size"] = np.nan
    return frame


def play(name: str, tasks: list[clenv.Task]) -> None:
    """Stream tasks to a learner, and print how it did."""
    env = clenv.make(tasks, alpha=0.9, horizon=1000, validation=0.1)
    agent = clenv.make_agent("er", env)
    for _ in clenv.run(env, agent, progress=False):
        pass
    shape, score = env.stream_spec.input_shape, env.score
    print(f"{name}: {len(tasks)} tasks, inputs {shape}, online accuracy {score.accuracy:.2f}")


if __name__ == "__main__":
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        play("folder", split(from_folder(folder_of_images(Path(scratch) / "digits")), classes_per_task=2))
    play("frame", split(from_frame(frame_with_texts(), target="kind", missing="encode"), classes_per_task=2))
    data, target = load_digits(return_X_y=True)
    inputs = torch.tensor(data, dtype=torch.float32) / 16
    play("dataset", split(from_dataset(TensorDataset(inputs, torch.tensor(target))), classes_per_task=5, class_order=0))
    play("arrays", permuted(inputs, target, n_tasks=5))
