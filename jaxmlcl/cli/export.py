"""`jaxmlcl export WORKDIR -o FILE`: a run's network as one file."""

from __future__ import annotations

from pathlib import Path

from jaxmlcl.cli import Parser

_ABOUT = """\
Write what a stage of a run ended with as one file, whole or not at all. FILE.zip is the predictor:
from rows as the data hold them to label scores, with label names, and thresholds if the run has
them; `jaxmlcl.predictor.load_predictor` reads it, and needs neither the run nor what trained it.
FILE.safetensors holds the weights of the encoder, with torchvision's names; any stage will do.
"""


def run(words: list[str]) -> None:
    """Write the file and say what is in it."""
    parser = Parser("jaxmlcl export", _ABOUT)
    parser.add_argument("workdir", metavar="WORKDIR", type=Path, help="folder of the run")
    parser.add_argument(
        "-o",
        dest="output",
        metavar="FILE",
        type=Path,
        required=True,
        help="file to write, .zip (the predictor) or .safetensors (the encoder)",
    )
    parser.add_argument(
        "--stage", metavar="NAME", help="the network (default: the run's main stage, or the last)"
    )
    parser.add_argument(
        "--platforms",
        metavar="NAMES",
        help="where the predictor can be computed, of cpu, cuda, rocm and tpu, whichever machine "
        "writes it (default: cpu,cuda,tpu)",
    )
    options = parser.read(words)
    # Imported here, so that a mistake in the arguments is told at once.
    from jaxmlcl.training.tables import check_ending

    check_ending(options.output, (".zip", ".safetensors"))
    encoder = options.output.suffix.lower() == ".safetensors"
    if encoder and options.platforms is not None:
        parser.error("--platforms belongs to a predictor; weights are the same everywhere")
    from jaxmlcl.cli.evaluate import run_experiment
    from jaxmlcl.cli.predict import check_not_folder, terminable
    from jaxmlcl.cli.processes import tell
    from jaxmlcl.cli.train import use_precision

    check_not_folder(options.output)
    experiment = run_experiment(options.workdir)
    use_precision(experiment)
    from jaxmlcl.training.export import DEFAULT_PLATFORMS, export_encoder, export_predictor

    workdir, path, stage = options.workdir, options.output, options.stage
    with terminable():
        if encoder:
            origin = export_encoder(experiment, workdir, path, stage, report=tell)
            told = "the encoder's weights"
        else:
            names = options.platforms
            platforms = DEFAULT_PLATFORMS if names is None else tuple(names.split(","))
            found = export_predictor(experiment, workdir, path, stage, platforms, report=tell)
            origin, shape = found.origin, ", ".join(map(str, ("b", *found.input_shape)))
            told = (
                f"{found.input_dtype} [{shape}] to scores [b, {len(found.label_names)}], "
                f"{'without' if found.thresholds is None else 'with'} thresholds, for "
                f"{', '.join(found.platforms)}"
            )
    print(f"{origin.stage}, step {origin.step}: {told}")
    print(f"written: {path}")
