"""`endofm-lab demo show` and `endofm-lab demo train`."""

import shutil
import subprocess
import webbrowser
from pathlib import Path
from typing import TYPE_CHECKING

from endofm_lab.errors import UserError

if TYPE_CHECKING:
    from endofm_lab.data.manifest import Manifest
    from endofm_lab.metrics.intervals import Interval
    from endofm_lab.model.video_model import VideoModel
    from endofm_lab.prediction import VideoPrediction


def show(headless: bool = False, port: int = 8501, out: Path = Path("outputs/demo")) -> None:
    """Predict a generated video, write the result as a report, and open the app.

    Args:
        headless: check that the app answers, then stop it instead of opening a browser.
        port: where the app listens on 127.0.0.1; the next free one is taken if it is in use.
        out: folder for the prediction and its report.
    """
    from endofm_lab.predict import predict_video
    from endofm_lab.video.samples import SAMPLES, sample_video

    name = next(iter(SAMPLES))
    print(f"Drawing the generated sample '{name}' ...", flush=True)
    prediction = predict_video(sample_video(name), "demo", out=out / "prediction")
    report = _write_demo_report(prediction, out / "report.html", f"Demo: {name} (generated)")
    print(prediction.table().to_string(index=False, float_format=lambda value: f"{value:.2f}", max_rows=12))
    print(f"\nThe demo prediction is drawn in {report}", flush=True)
    _serve(_free_port(port), headless)


def _write_demo_report(prediction: "VideoPrediction", path: Path, title: str) -> Path:
    from endofm_lab.figures.prediction import frame_figure, timeline
    from endofm_lab.reports.html import write_report
    from endofm_lab.video.reader import open_video

    shown = prediction.frames[:: max(1, len(prediction.frames) // 4)][1:4].tolist()
    with open_video(prediction.video.path) as reader:
        pictures = reader.read(shown)
    figures = [
        frame_figure(picture, *prediction.overlay(frame), f"Generated frame {frame}")
        for picture, frame in zip(pictures, shown, strict=True)
    ]
    origin = prediction.provenance
    about = f"Model: {origin['model_name']}. Initialisation: {origin['initialisation']['words']}"
    return write_report(path, title, [("Scores over time", [about, timeline(prediction)]), ("Frames", figures)])


def _free_port(port: int) -> int:
    import socket

    for candidate in range(port, port + 50):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", candidate)) != 0:
                return candidate
    raise UserError(f"Ports {port} to {port + 49} are all in use: choose another with --port.")


def _serve(port: int, headless: bool) -> None:
    from endofm_lab.cli.app import APP, command, stop, wait_until_it_answers

    url = f"http://127.0.0.1:{port}"
    server = subprocess.Popen(command(port, headless=True), cwd=APP.parent.parent, stdout=subprocess.DEVNULL)
    try:
        wait_until_it_answers(url, server)
        print(f"The app answers at {url}", flush=True)
        if headless:
            return
        webbrowser.open(url)
        print("Press Ctrl-C to stop it.", flush=True)
        server.wait()
    finally:
        stop(server)


def train(out: Path = Path("outputs/demo_model"), data: Path = Path("outputs/phantom"), seed: int = 0) -> None:
    """Pre-train the demo model on the phantom's videos, fit its heads, and print its numbers on unseen patients.

    It can be stopped at any time and goes on where it was. The pre-training is `pretrain --preset tiny`; its run stays
    beside the weights.

    Args:
        out: folder for the weights (float16) and their card.
        data: folder of the phantom data set, preset demo; it is written first if it is not there.
        seed: of initialisation, draws and the phantom.
    """
    from tqdm import tqdm

    from endofm_lab.cli.pretrain import run
    from endofm_lab.data.manifest import read_manifest
    from endofm_lab.data.phantom_set import write_phantom
    from endofm_lab.demo.config import DemoConfig
    from endofm_lab.demo.model import build_demo_model, carded
    from endofm_lab.demo.training import train_demo
    from endofm_lab.model.loading.load import load_model, save_model
    from endofm_lab.pretraining.config import tiny, with_settings
    from endofm_lab.pretraining.trainer import MODEL
    from endofm_lab.training.checkpoints import Checkpoints

    table = write_phantom(data, preset="demo", seed=seed)
    pretraining = out.with_name(f"{out.name}-pretraining")
    if not (pretraining / MODEL).is_dir():
        run(with_settings(tiny(table, pretraining), {"probe": str(table), "seed": seed}))
    manifest = read_manifest(table)
    model = build_demo_model(seed=seed, pretrained=pretraining / MODEL)
    print(f"Initialisation: {model.card.initialisation['words']}")
    config = DemoConfig(seed=seed)
    checkpoints = Checkpoints(out.with_name(f"{out.name}-training"))
    with tqdm(total=config.total_steps, unit="step", mininterval=10) as bar:
        for log in train_demo(model, manifest, config, checkpoints):
            bar.update(log["step"] - bar.n)
            if log["step"] % 50 == 0:
                bar.set_postfix({k: f"{v:.3f}" for k, v in log.items() if k not in ("step", "lr")})
    save_model(model.half(), out)
    shutil.rmtree(checkpoints.folder, ignore_errors=True)
    stored = load_model(out)  # what is measured is what is stored
    _print_numbers(stored, manifest, "val")
    save_model(carded(stored, manifest, config, _print_numbers(stored, manifest, "test")).half(), out)
    print(f"Written to {out}")


def evaluate(model: str = "demo", data: Path = Path("outputs/phantom"), seed: int = 0) -> None:
    """Print the numbers of a demo model on the phantom's test patients, with 95 % intervals over patients.

    Args:
        model: "demo" or the folder that `demo train` wrote.
        data: folder of the phantom data set, preset demo; it is written first if it is not there.
        seed: of the phantom.
    """
    from endofm_lab.data.manifest import read_manifest
    from endofm_lab.data.phantom_set import write_phantom
    from endofm_lab.model.loading.load import load_model

    _print_numbers(load_model(model), read_manifest(write_phantom(data, preset="demo", seed=seed)), "test")


def _print_numbers(model: "VideoModel", manifest: "Manifest", split: str) -> "dict[str, Interval]":
    from endofm_lab.demo.evaluation import evaluate_demo

    numbers = evaluate_demo(model, manifest, split)
    for name, interval in numbers.items():
        print(f"{split:<5} {name:<40} {interval}", flush=True)
    return numbers


DEMO = {"show": show, "train": train, "evaluate": evaluate}
