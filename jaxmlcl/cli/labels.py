"""`jaxmlcl labels WORKDIR -o FILE`: how alike a network holds the labels."""

from __future__ import annotations

from pathlib import Path

from jaxmlcl.cli import Parser

_ABOUT = """\
Write the inner products of a network's label embeddings, [L, L], with labels that resemble one
another side by side: as a table (.csv, with the diagonal) or as a picture (.png, without it).
For stages whose network has embeddings of labels, as C-GMVAE's has.
"""


def run(words: list[str]) -> None:
    """Write the file and print its path."""
    parser = Parser("jaxmlcl labels", _ABOUT)
    parser.add_argument("workdir", metavar="WORKDIR", type=Path, help="folder of the run")
    parser.add_argument(
        "-o",
        dest="output",
        metavar="FILE",
        type=Path,
        required=True,
        help="file to write, .csv or .png",
    )
    parser.add_argument("--stage", metavar="NAME", help="the stage (default: the run's main stage)")
    parser.add_argument(
        "--order",
        choices=("clustered", "data"),
        default="clustered",
        help="order of the labels: by resemblance, or as in the data (default: clustered)",
    )
    parser.add_argument("--cosine", action="store_true", help="of embeddings scaled to unit length")
    options = parser.read(words)
    # Imported here, so that a mistake in the arguments is told at once.
    from jaxmlcl.training.tables import check_ending

    check_ending(options.output, (".csv", ".png"))
    import csv
    import io

    import numpy as np

    from jaxmlcl.cli.evaluate import run_experiment
    from jaxmlcl.evaluation import clustered_order
    from jaxmlcl.io import write_atomic
    from jaxmlcl.training.predict import open_network

    network = open_network(run_experiment(options.workdir), options.workdir, options.stage)
    embeddings = network.label_embeddings().astype(np.float64)
    if options.cosine:
        embeddings /= np.maximum(np.linalg.norm(embeddings, axis=1, keepdims=True), 1e-12)
    products = embeddings @ embeddings.T
    order = np.arange(len(products))
    if options.order == "clustered":
        order = clustered_order(products)
    products = products[np.ix_(order, order)]
    names = [network.label_names[i] for i in order]
    if options.output.suffix == ".png":
        from jaxmlcl.report import heat_map

        kind = "cosines" if options.cosine else "inner products"
        write_atomic(options.output, heat_map(products, names, f"{kind} of label embeddings"))
    else:
        text = io.StringIO()
        table = csv.writer(text, lineterminator="\n")
        table.writerow(["label", *names])
        table.writerows(
            [name, *(f"{value:.9g}" for value in row)]
            for name, row in zip(names, products, strict=True)
        )
        write_atomic(options.output, text.getvalue())
    print(f"written: {options.output}")
