"""Commands for the demo: `endofm-lab demo show`, `train`, `familiarity` and `evaluate`."""

import shutil
import subprocess
import webbrowser
from pathlib import Path

from tqdm import tqdm

from endofm_lab.cli.command import Output, command
from endofm_lab.cli.serve import APP, command_line, free_port, stop, wait_until_it_answers
from endofm_lab.cli.train import run
from endofm_lab.data.manifest import Manifest, read_manifest
from endofm_lab.data.phantom_set import write_phantom
from endofm_lab.data.samples import SAMPLES, sample_video
from endofm_lab.data.units import units
from endofm_lab.demo.config import DemoConfig
from endofm_lab.demo.evaluation import evaluate_demo
from endofm_lab.demo.model import build_demo_model, carded
from endofm_lab.demo.training import train_demo
from endofm_lab.explain.familiarity import fit_familiarity
from endofm_lab.metrics.intervals import Interval
from endofm_lab.model.loading.load import load_model, save_model
from endofm_lab.model.video_model import VideoModel
from endofm_lab.predict import predict_video
from endofm_lab.pretraining.config import tiny, with_settings
from endofm_lab.pretraining.trainer import MODEL
from endofm_lab.reports.video import write_video_report
from endofm_lab.training.checkpoints import Checkpoints


@command()
def show(output: Output, headless: bool = False, port: int = 8501, out: Path = Path("outputs/demo")) -> None:
    """Predict a generated video, write the result as a report, and open the app.

    Args:
        headless: check that the app answers and stop it, without opening a browser.
        port: port of the app on 127.0.0.1; if it is in use, the next free port.
    """
    name = next(iter(SAMPLES))
    output.say(f"Drawing the generated sample '{name}' ...")
    prediction = predict_video(sample_video(name), "demo", out=out / "prediction", progress=output.progress)
    title = f"Demo: {name} (generated)"
    report = write_video_report(prediction, load_model("demo").card, out / "report.html", title)
    table = prediction.table()
    output.say(table.to_string(index=False, float_format=lambda value: f"{value:.2f}", max_rows=12))
    output.say(f"\nThe report of the demo prediction is {report}")
    url = _serve(free_port(port), headless, output)
    output.result({"report": report, "app": url, "clips": table.to_dict("records")})


def _serve(port: int, headless: bool, output: Output) -> str:
    """Start the app, print its address, and wait until it ends unless ``headless``; returns the address."""
    url = f"http://127.0.0.1:{port}"
    server = subprocess.Popen(command_line(port, headless=True), cwd=APP.parent, stdout=subprocess.DEVNULL)
    try:
        wait_until_it_answers(url, server)
        output.say(f"The app is running at {url}")
        if not headless:
            webbrowser.open(url)
            output.say("Press Ctrl-C to stop it.")
            server.wait()
        return url
    finally:
        stop(server)


@command()
def train(
    output: Output, out: Path = Path("outputs/demo_model"), data: Path = Path("outputs/phantom"), seed: int = 0
) -> None:
    """Pre-train the demo model on the phantom's videos, fit its heads, and print its metrics on held-out patients.

    The command can be stopped at any time; the same command continues the training. The pre-training is
    `pretrain --preset tiny`; its run is in a folder next to the weights.

    Args:
        data: folder of the phantom data set with the preset demo; it is generated if it does not exist.
        seed: seed of the initialisation, the training and the phantom.
    """
    table = write_phantom(data, preset="demo", seed=seed, progress=output.progress)
    pretraining = out.with_name(f"{out.name}-pretraining")
    if not (pretraining / MODEL).is_dir():
        settings = with_settings(tiny(table, pretraining), {"probe": str(table), "seed": seed})
        run(settings, Output(quiet=not output.progress))
    manifest = read_manifest(table)
    model = build_demo_model(seed=seed, pretrained=pretraining / MODEL)
    output.say(f"Initialisation: {model.card.initialisation['words']}")
    config = DemoConfig(seed=seed)
    checkpoints = Checkpoints(out.with_name(f"{out.name}-training"))
    with tqdm(total=config.total_steps, unit="step", mininterval=10, disable=not output.progress) as bar:
        for log in train_demo(model, manifest, config, checkpoints):
            bar.update(log["step"] - bar.n)
            if log["step"] % 50 == 0:
                bar.set_postfix({k: f"{v:.3f}" for k, v in log.items() if k not in ("step", "lr")})
    save_model(model.half(), out)
    shutil.rmtree(checkpoints.folder, ignore_errors=True)
    stored = load_model(out)  # the metrics must be those of the stored weights, which are rounded to half precision
    _numbers(stored, manifest, "val", output)
    numbers = _numbers(stored, manifest, "test", output)
    finished = carded(stored, manifest, config, numbers)
    finished.familiarity = fit_familiarity(stored, manifest, seed=seed)
    output.say(finished.familiarity.words)
    save_model(finished.half(), out)
    output.result({"out": out, "test": {name: vars(interval) for name, interval in numbers.items()}})
    output.written(out)


@command()
def familiarity(
    output: Output,
    model: str = "demo",
    out: Path = Path("outputs/demo_model"),
    data: Path = Path("outputs/phantom"),
    seed: int = 0,
) -> None:
    """Measure the features of the demo model's training clips, and write the model with these statistics.

    Weights and numbers of the model stay as they are. `demo train` does the same at its end.

    Args:
        data: folder of the phantom data set with the preset demo; it is generated if it does not exist.
        seed: seed of the phantom.
    """
    manifest = read_manifest(write_phantom(data, preset="demo", seed=seed, progress=output.progress))
    network = load_model(model)
    network.familiarity = fit_familiarity(network, manifest, seed=seed)
    save_model(network.half(), out)
    output.say(network.familiarity.words)
    output.result({"out": out, "limit": network.familiarity.limit, **network.familiarity.about})
    output.written(out)


@command()
def evaluate(output: Output, model: str = "demo", data: Path = Path("outputs/phantom"), seed: int = 0) -> None:
    """Print the metrics of a demo model on the phantom's test patients, with 95 % intervals over patients.

    Args:
        data: folder of the phantom data set with the preset demo; it is generated if it does not exist.
        seed: seed of the phantom.
    """
    manifest = read_manifest(write_phantom(data, preset="demo", seed=seed, progress=output.progress))
    numbers = _numbers(load_model(model), manifest, "test", output)
    output.result({name: vars(interval) for name, interval in numbers.items()})


def _numbers(model: VideoModel, manifest: Manifest, split: str, output: Output) -> dict[str, Interval]:
    """The demo model's metrics on a split; they are printed with the units that were resampled for the intervals."""
    numbers = evaluate_demo(model, manifest, split)
    output.say(f"{split:<5} {units(manifest.rows(split)).words}")
    for name, interval in numbers.items():
        output.say(f"{split:<5} {name:<40} {interval}")
    return numbers


DEMO = {"show": show, "train": train, "familiarity": familiarity, "evaluate": evaluate}
