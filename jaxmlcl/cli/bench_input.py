"""`jaxmlcl bench input CONFIG`: images per second of each stage of the input, and what bounds."""

from __future__ import annotations

import dataclasses
import json
import os
import sys
from typing import TYPE_CHECKING, Any

from jaxmlcl.errors import ConfigError, UserError

if TYPE_CHECKING:
    from jaxmlcl.config import Experiment

_ABOUT = """\
usage: jaxmlcl bench input CONFIG [--FIELD VALUE ...]
       jaxmlcl bench input SOURCE [--FIELD VALUE ...]

Images per second of each stage of the input on one core (read, decode, crop, batch), of the
transfer to the devices, and of the whole pipeline with the workers that --loading.workers N asks
for; with CONFIG also of its training step alone, and which of them bounds a run. The views of an
image count once. Nothing is written.

CONFIG is a configuration or a run's experiment.json; its first stage on photographs is measured.
SOURCE names photographs (coco:..., voc:..., folder:..., shards:...), cut as MulSupCon's pretraining
cuts them: two crops of 224 pixels.

options:
  --stage NAME     measure this stage of CONFIG (of SOURCE: pretrain)
  --no-step        leave out the training step, which has to be compiled
  --seconds X      how long the pipeline and the step are watched (default: 3)
  --json           print one JSON object, nothing else
  --FIELD VALUE    every field of the experiment, such as --data.images.size 96,
                   --stages.pretrain.batch-size 64, --loading.workers 4, --data.root FOLDER
"""


def run(words: list[str]) -> None:
    """Measure, and print a table or JSON."""
    words, options = _options(words)
    if options["help"]:
        print(_ABOUT, end="")
        return
    experiment, is_config = _experiment(words)
    seconds = float(options["seconds"])
    from jaxmlcl.bench import bench_input, step_rate
    from jaxmlcl.cli.train import use_precision, with_absolute_root

    experiment = with_absolute_root(experiment)
    use_precision(experiment)
    from jaxmlcl.data.images import Photographs
    from jaxmlcl.training.program import stage_reader
    from jaxmlcl.training.splits import open_split

    name = options["stage"] or next(iter(experiment.stages))
    if name not in experiment.stages:
        known = ", ".join(experiment.stages)
        raise ConfigError(f'bench input: no stage "{name}"; there are {known}')
    source = open_split(experiment.data_of(name), "train")
    if not isinstance(source, Photographs):
        raise UserError(
            f"bench input: {source.metadata.name} is in memory and is not read by workers; name "
            "photographs (coco:, voc:, folder:, nuswide:, mirflickr:, shards:)"
        )
    mesh, stage = experiment.mesh.build(), experiment.stages[name]
    if stage.batch_size % mesh.size:
        raise ConfigError(
            f"stages.{name}: {stage.batch_size} samples do not divide over {mesh.size} devices; "
            "change batch_size"
        )
    load = os.getloadavg()[0]
    if load > 0.5:
        _tell(f"the machine is busy (load {load:.1f}): these figures say little")
    figures = bench_input(
        source,
        stage_reader(experiment, name, source),
        mesh,
        batch_size=stage.batch_size,
        loading=experiment.loading,
        seconds=seconds,
        seed=experiment.seed,
    )
    if is_config and not options["no-step"]:
        _tell(f"compiling the step of {name}")
        step = _step(experiment, name, source, mesh)
        figures = dataclasses.replace(figures, step=step_rate(step, stage.batch_size, seconds))
    about = {
        "source": experiment.data_of(name).train,
        "images": len(source),
        "size": source.images.size,
        "batch_size": stage.batch_size,
        "workers": experiment.loading.workers,
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None,
        "load": load,
    }
    if options["json"]:
        found = {**about, **dataclasses.asdict(figures), "bound": figures.bound}
        print(json.dumps(found, indent=2))
        return
    workers = experiment.loading.workers
    print(
        f"{about['source']}: {len(source)} images, crops of {about['size']} pixels, batches of "
        f"{stage.batch_size}, {workers or 'no'} worker{'' if workers == 1 else 's'}"
    )
    rows = [*figures.stages.items(), ("one core, all four", figures.core)]
    rows += [("transfer", figures.transfer), ("pipeline", figures.pipeline)]
    if figures.step is not None:
        rows.append((f"step of {name}", figures.step))
    for title, rate in rows:
        print(f"  {title:<20} {rate:>10,.0f} images/s")
    print(f"a run is bound by {figures.bound}")


def _options(words: list[str]) -> tuple[list[str], dict[str, Any]]:
    found: dict[str, Any] = {"stage": None, "seconds": "3"}
    found |= dict.fromkeys(("help", "json", "no-step"), False)
    rest: list[str] = []
    wanted = iter(words)
    for word in wanted:
        if word in ("-h", "--help"):
            found["help"] = True
        elif word in ("--json", "--no-step"):
            found[word[2:]] = True
        elif word in ("--stage", "--seconds"):
            value = next(wanted, None)
            if value is None:
                raise UserError(f"bench input: {word} needs a value")
            found[word[2:]] = value
        else:
            rest.append(word)
    try:
        if not 0 < float(found["seconds"]) < 3600:
            raise ValueError
    except ValueError:
        raise UserError(
            f"bench input: --seconds must be a number above 0, not {found['seconds']}"
        ) from None
    return rest, found


def _experiment(words: list[str]) -> tuple[Experiment, bool]:
    """What is measured, and whether it is an experiment of the user's own."""
    from jaxmlcl import config

    what, flags = next(iter(words), "-"), words[1:]
    if what.startswith("-"):
        raise UserError("CONFIG or SOURCE comes first: jaxmlcl bench input CONFIG")
    if os.path.splitext(what)[1] in (".py", ".json"):
        return config.override(config.load(what), flags), True
    stage = config.Stage(
        config.MulSupCon(), config.epochs(1), augmentation=config.strategy("simclr")
    )
    experiment = config.Experiment("input", config.Data(what), {"pretrain": stage})
    return config.override(experiment, flags), False


def _step(experiment: Experiment, name: str, source: Any, mesh: Any) -> Any:
    """A function that takes one step on one batch, which is on the devices already."""
    from jaxmlcl.sharding import place_rows
    from jaxmlcl.training.program import build_stage, device_constants, stage_steps
    from jaxmlcl.training.splits import fit_preparation

    # Lengths relative to other stages' FLOPs do not matter for one step.
    flops = dict.fromkeys(experiment.stages, 1.0)
    program = build_stage(experiment, name, mesh, source, flops)
    preparation = fit_preparation(experiment.data_of(name), source)
    constants = device_constants(preparation, source, mesh, experiment.precision)
    host = stage_steps(experiment, name, source, mesh, resident=False)[0]
    compiled, _ = program.compile(host, constants)
    state, batch = program.initial(None), place_rows(host, mesh)

    def step() -> Any:
        nonlocal state
        state, measurements = compiled(state, batch, constants)
        return measurements

    return step


def _tell(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
