"""`zero123 eval`: the paper's tables over a folder of meshes or of view sets, the protocol beside every number."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from . import options
from .screen import screen

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.table import Table

    from ..cache import Cache
    from ..evaluation.evaluate import Protocol, Score
    from ..evaluation.metrics import Estimate
    from ..evaluation.published import Published
    from ..evaluation.rig import Plan
    from ..evaluation.sets import Listed

app = typer.Typer(help="Measure models on objects whose shape is known: the paper's tables.")

NEEDS = ("volume", "views", "reconstruct")  # rows that need a model
WIDEST = 240  # letters of a table's line
SECONDS = 3600.0  # that an object may take in a worker


class ShapeProtocol(StrEnum):
    P = "P"
    F = "F"


class ViewProtocol(StrEnum):
    zero123 = "zero123"


Dataset = Annotated[
    Path | None,
    typer.Argument(
        metavar="[DATASET]", help="A folder of meshes, a mesh, or a folder that `data render` made.", show_default=False
    ),
]
Model = Annotated[
    str | None,
    typer.Option(help="pocket, one of `zero123 models list`, a file, a folder, or a row without a model."),
]
Limit = Annotated[int, typer.Option(min=0, help="Only the first so many objects by name; 0 for all.")]
Jobs = Annotated[int, typer.Option(min=0, max=256, help="Processes; 0 for one a core.")]
Html = Annotated[Path | None, typer.Option(help="Also a page with pictures of every object, in one file.")]
Compare = Annotated[
    tuple[Path, Path] | None,
    typer.Option(metavar="A.json B.json", help="Paired differences A - B of two runs with --json instead."),
]
WithPublished = Annotated[bool, typer.Option("--with-published", help="Figures of papers beside ours.")]
PhotoElevation = Annotated[
    float | None,
    typer.Option(
        min=-90,
        max=90,
        help="Tell the models how high the photo's camera stands: 20 with meshes; not for view sets.",
        show_default="not told",
    ),
]
VolumeAlone = Annotated[bool, typer.Option("--volume-alone", help="The model's volume, nothing refined.")]
Threshold = Annotated[float, typer.Option(help="Volumes: the logit from which a cell is inside.")]
Mirrored = Annotated[bool, typer.Option("--mirrored", help="Volumes: the mean of the photo's and its mirror image's.")]


@app.command()
@options.verb
def shape(
    dataset: Dataset = None,
    model: Model = None,
    protocol: Annotated[ShapeProtocol, typer.Option(help="How shapes are compared.")] = ShapeProtocol.P,
    limit: Limit = 0,
    jobs: Jobs = 1,
    photo_elevation: PhotoElevation = None,
    volume_alone: VolumeAlone = False,
    threshold: Threshold = 0.0,
    mirrored: Mirrored = False,
    html: Html = None,
    compare: Compare = None,
    with_published: WithPublished = False,
    pose_kind: options.PoseFormula = None,
    device: options.Device = "auto",
    dtype: options.Dtype = options.DtypeKind.auto,
    force: options.Force = False,
    preset: options.Preset = None,
    set_: options.Set = None,
    *,
    stages: options.Stages,
) -> int:
    """Shapes from one photo of each object: IoU and Chamfer distance, or F-scores."""
    from ..evaluation import evaluate, published, shapes

    if compare:
        return show_comparison(*compare)
    knobs = {
        "model.name": None if model in shapes.SHAPES else model,
        "model.pose_kind": pose_kind.value if pose_kind else None,
        "views.photo_elevation": photo_elevation,
    }
    cache = stages.open_cache()
    row = model if model in shapes.SHAPES else "volume" if volume_alone else "reconstruct"
    refuse_unused(row, {"--volume-alone": volume_alone, "--threshold": threshold != 0, "--mirrored": mirrored})
    plan = make_plan(preset, set_, knobs, device, dtype.value, cache)
    plan = replace(plan, threshold=threshold, mirrored=mirrored)
    run = Run(
        title="shape",
        protocol=evaluate.SHAPE_PROTOCOLS[protocol.value],
        plan=plan,
        model=row,
        baselines=shapes.BASELINES,
        published=published.SHAPES if with_published else (),
    )
    return measure(run, dataset, limit, jobs, html, force=force)


@app.command()
@options.verb
def views(
    dataset: Dataset = None,
    model: Model = None,
    protocol: Annotated[ViewProtocol, typer.Option(help="How pictures are compared.")] = ViewProtocol.zero123,
    size: Annotated[int, typer.Option(min=32, max=1024, help="Side of the pictures that are compared, px.")] = 64,
    limit: Limit = 0,
    jobs: Jobs = 1,
    photo_elevation: PhotoElevation = None,
    volume_alone: VolumeAlone = False,
    mirrored: Mirrored = False,
    lpips: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Weights of LPIPS: AlexNet and linear layers as an .npz.")
    ] = None,
    pose_kind: options.PoseFormula = None,
    sampler: Annotated[str | None, typer.Option(help="ddim-original, ddim, dpm++ or unipc.")] = None,
    steps: Annotated[int | None, typer.Option(help="Network calls a view.", show_default="50")] = None,
    guidance: Annotated[float | None, typer.Option(help="How much more the photo counts.", show_default="3.0")] = None,
    seed: Annotated[int | None, typer.Option(help="Another seed, other pictures.", show_default="0")] = None,
    html: Html = None,
    compare: Compare = None,
    with_published: WithPublished = False,
    device: options.Device = "auto",
    dtype: options.Dtype = options.DtypeKind.auto,
    force: options.Force = False,
    preset: options.Preset = None,
    set_: options.Set = None,
    *,
    stages: options.Stages,
) -> int:
    """Views of each object from its one photo: PSNR, SSIM, LPIPS and the masks' overlap."""
    from .. import pipeline
    from ..artifacts import peek_head
    from ..diffusion.lonevolume import KIND
    from ..evaluation import evaluate, published
    from ..evaluation.views import BASELINES, VIEWS

    if compare:
        return show_comparison(*compare)
    knobs = {
        "seed": seed,
        "model.name": None if model in VIEWS else model,
        "model.pose_kind": pose_kind.value if pose_kind else None,
        "views.photo_elevation": photo_elevation,
        "views.sampler": sampler,
        "views.steps": steps,
        "views.guidance": guidance,
    }
    cache = stages.open_cache()
    plan = make_plan(preset, set_, knobs, device, dtype.value, cache)
    plan = replace(plan, mirrored=mirrored, size=size, views=True)
    name = plan.settings.model.name
    if model in VIEWS or not name:
        asked = model or ""
    else:
        lone = peek_head(pipeline.locate_model(name)).get("kind") == KIND
        asked = "volume" if volume_alone or lone else "views"
    refuse_unused(asked, {"--volume-alone": volume_alone, "--mirrored": mirrored})
    chosen = evaluate.VIEW_PROTOCOLS[protocol.value]
    run = Run(
        title="views",
        protocol=replace(chosen, name=f"{chosen.name} at {size} px"),
        plan=plan,
        model=asked,
        baselines=BASELINES,
        published=published.VIEWS if with_published else (),
        lpips=lpips or find_lpips(),
    )
    return measure(run, dataset, limit, jobs, html, force=force)


def refuse_unused(row: str, given: dict[str, bool]) -> None:
    """What only a volume heeds, asked of another row."""
    from ..errors import UsageError

    unused = [flag for flag, stated in given.items() if stated]
    if unused and row != "volume":
        raise UsageError(
            "only a model's volume heeds it", where=unused[0], remedy="add --volume-alone with a model, or leave it out"
        )


def find_lpips() -> Path | None:
    """The weights of LPIPS, if somebody put them where weights lie."""
    from .. import machine
    from ..errors import UnavailableError

    try:
        known = machine.weights_folder() / "lpips_alex.npz"
    except UnavailableError:  # a user without a home
        return None
    return known if known.is_file() else None


@dataclass(frozen=True)
class Run:
    """What is measured how."""

    title: str
    protocol: Protocol
    plan: Plan
    model: str  # a row of SHAPES or VIEWS; empty for the baselines alone
    baselines: tuple[str, ...]
    published: tuple[Published, ...]
    lpips: Path | None = None

    @property
    def rows(self) -> tuple[str, ...]:
        return tuple(
            dict.fromkeys([*(row for row in self.baselines if row != self.model), self.model or self.baselines[-1]])
        )

    def label(self, row: str) -> str:
        """What people call a row: a model's own name, where it is one."""
        name = self.plan.settings.model.name
        return f"{Path(name).name} ({row})" if row in NEEDS and name else row


def make_plan(
    preset: str | None,
    set_: list[str] | None,
    knobs: dict[str, Any],
    device: str,
    dtype: str,
    cache: Cache,
) -> Plan:
    from .. import machine
    from ..evaluation.rig import Plan
    from .session import read_settings

    settings = read_settings(preset, set_, knobs, device).settings
    backend = machine.pick(device, dtype) if settings.model.name else machine.Backend("cpu", "float32", "CPU")
    return Plan(settings, backend, cache, elevation_deg=settings.views.photo_elevation)


def measure(run: Run, dataset: Path | None, limit: int, jobs: int, html: Path | None, *, force: bool) -> int:
    """Shows every object to every model and prints what came of it; the exit code of the whole."""
    from .. import batch, machine
    from ..errors import MeshError, UsageError, gravest, of_code, writing_failed
    from ..evaluation.evaluate import Job, Sheet, mean_cutout, score
    from ..evaluation.evaluate import run as run_all
    from ..evaluation.metrics import read_lpips
    from ..evaluation.shapes import load_net, load_prior
    from ..watch import Progress

    started = time.monotonic()
    if dataset is None:
        raise UsageError("name the objects", where="DATASET", remedy="give a folder of meshes, or --compare two runs")
    run, found = list_dataset(run, dataset, limit)
    if html:
        batch.check_target(html)
        if html.exists() and not force:
            raise batch.already_there(html)
    if run.lpips:  # what is wrong with weights shows before any work
        read_lpips(run.lpips)
    if run.model in NEEDS:
        (load_net if run.model == "volume" else load_prior)(run.plan)
    if not run.model:
        screen.note("eval: no model is named: these are the rows that need none")
    screen.start(f"eval {run.title}: {len(found)} objects, {', '.join(map(run.label, run.rows))}", 1, 1)
    watch = screen.watcher("")
    mean = mean_cutout(found, run.plan) if "mean-picture" in run.rows else None
    protocol = run.protocol.name.partition(" ")[0]
    todo = [
        Job(name, path, run.rows, protocol, run.plan, run.lpips, pictures=html is not None, mean=mean)
        for name, path in found.items()
    ]
    sheets: dict[str, Sheet] = {}
    codes: list[int] = []
    skipped: dict[str, tuple[str, int]] = {}  # why, and its exit code
    for done, result in enumerate(run_all(todo, jobs or machine.cores(), SECONDS), 1):
        watch(Progress("eval", done, len(todo), result.job.name))
        if result.failure:
            code = result.code or MeshError.exit_code
            skipped[result.job.name] = (result.failure, code)
            codes.append(code)
            screen.error(of_code(code)(result.failure, where=result.job.name))
            continue
        sheets[result.job.name] = result.value
        for row in result.value.rows:
            if row.failure:
                codes.append(row.code)
                screen.error(of_code(row.code)(row.failure, where=f"{row.name}: {run.label(row.model)}"))
    screen.stop()
    ordered = [sheets[name] for name in found if name in sheets]
    scores = [
        score(model, run.protocol.name, [row for sheet in ordered for row in sheet.rows if row.model == model])
        for model in run.rows
    ]
    show_scores(run, scores, skipped)
    if html:
        from ..evaluation.page import build_page

        labels = {row: run.label(row) for row in run.rows}
        page = build_page(run.title, run.protocol, scores, ordered, labels, run.published)
        try:
            batch.write_output(html, page.encode(), force=force)
        except OSError as error:
            raise writing_failed(error, str(html)) from error
        screen.note(f"eval: pictures -> {html}")
    screen.finish(f"eval {run.title}: {len(ordered)} of {len(found)} objects, {time.monotonic() - started:.1f} s")
    return gravest(codes)


def list_dataset(run: Run, dataset: Path, limit: int) -> tuple[Run, dict[str, Path]]:
    """The objects by name, and the run by the protocol of their kind."""
    from ..errors import MeshError, MissingInputError
    from ..evaluation.rig import list_meshes
    from ..evaluation.sets import find_sets, list_sets
    from .data import gather_meshes

    given = gather_meshes([str(dataset)])
    sets = find_sets(dataset)
    meshes = [path for path in given if path not in sets]
    if sets and meshes:
        raise MeshError(
            f"it holds {len(sets)} view sets and {len(meshes)} meshes, whose numbers don't mix",
            where=str(dataset),
            remedy="keep them in folders of their own",
        )
    if meshes:
        return run, list_meshes(meshes, limit)
    if not sets:
        raise MissingInputError("there are no meshes and no view sets in it", where=str(dataset))
    listed = list_sets(sets, limit)
    return on_view_sets(run, listed), listed.files


def on_view_sets(run: Run, listed: Listed) -> Run:
    """The same by the protocol of view sets; what they don't serve is refused."""
    from ..errors import UsageError
    from ..evaluation.evaluate import ON_SETS, SHAPE_PROTOCOLS, VIEW_PROTOCOLS

    if run.model == "lifted-oracle":
        raise UsageError(
            "it renders the object in its colours, which a view set does not hold",
            where="--model lifted-oracle",
            remedy="give meshes, or take --model oracle",
        )
    if run.plan.elevation_deg is not None:
        raise UsageError(
            "each view set's photo has an elevation of its own", where="--photo-elevation", remedy="leave it out"
        )
    name, _, size = run.protocol.name.partition(" ")
    chosen = (VIEW_PROTOCOLS if run.plan.views else SHAPE_PROTOCOLS)[name + ON_SETS]
    kind = f"{listed.truth} cells".strip()
    stored = f"of {listed.size} px" if run.plan.views else f"of {listed.size} px and {listed.cells}^3 {kind}"
    return replace(run, protocol=replace(chosen, name=" ".join(filter(None, (chosen.name, size, stored)))))


# Results --------------------------------------------------------------------------------------------------------------


def show_scores(run: Run, scores: Sequence[Score], skipped: dict[str, tuple[str, int]]) -> None:
    """The tables; with --json they go to stderr, and stdout gets an object for each row, the model's last."""
    from ..evaluation.evaluate import compare, figures_of

    last = scores[-1]
    against = {
        score.model: compare(figures_of(last.rows), figures_of(score.rows))
        for score in scores[:-1]
        if figures_of(last.rows).keys() & figures_of(score.rows).keys()
    }
    tables = [score_table(run, scores)]
    said = f"{run.protocol.says}; means with 95 % intervals over objects"
    if against:
        tables.append(
            difference_table(run.label(last.model), {run.label(row): found for row, found in against.items()})
        )
    tables.append(object_table(run, last))
    if run.published:
        tables.append(published_table(run))
    show_tables(tables, f"protocol {run.protocol.name}: {said}")
    if screen.json:
        for score in scores:
            screen.result("", as_facts(run, score, skipped, against if score is last else {}))


def show_tables(tables: Sequence[Table], note: str = "") -> None:
    """As wide as they are: a number that is cut off says nothing."""
    import io

    from rich.console import Console

    page = io.StringIO()
    console = Console(file=page, no_color=True, width=WIDEST)
    for table in tables:
        console.print(table)
        console.print()
    console.print(note, soft_wrap=True, markup=False, highlight=False)
    text = "\n".join(line.rstrip() for line in page.getvalue().strip("\n").splitlines())
    if not screen.json:
        screen.print(text.encode())
    elif not screen.quiet:
        screen.write(text + "\n")


def score_table(run: Run, scores: Sequence[Score]) -> Table:
    from rich.table import Table

    from ..evaluation.evaluate import METRICS

    metrics = columns(run, scores)
    table = Table(f"{run.title}, protocol {run.protocol.name}", box=None, pad_edge=False)
    for key in metrics:
        table.add_column(METRICS[key].label, justify="right", no_wrap=True)
    for name in ("objects", "seconds"):
        table.add_column(name, justify="right")
    for score in scores:
        cells = [shown(key, score.metrics.get(key), run) for key in metrics]
        count = sum(not row.failure for row in score.rows)
        table.add_row(run.label(score.model), *cells, str(count), f"{score.seconds:.1f}")
    return table


def published_table(run: Run) -> Table:
    from rich.table import Table

    from ..evaluation.evaluate import METRICS

    keys = [key for key in METRICS if any(key in paper.figures for paper in run.published)]
    table = Table("published", box=None, pad_edge=False)
    for key in keys:
        table.add_column(METRICS[key].label, justify="right", no_wrap=True)
    for name in ("protocol", "source"):
        table.add_column(name)
    for paper in run.published:
        cells = [f"{paper.figures[key]:.{METRICS[key].digits}f}" if key in paper.figures else "" for key in keys]
        table.add_row(paper.model, *cells, paper.protocol, paper.source)
    return table


def columns(run: Run, scores: Sequence[Score]) -> list[str]:
    """The protocol's metrics, then what some rows say beside them."""
    more = {key: None for score in scores for key in score.metrics if key not in run.protocol.metrics}
    return [*run.protocol.metrics, *more]


def shown(key: str, found: Estimate | None, run: Run) -> str:
    from ..evaluation.evaluate import METRICS

    if found is None:
        return "no weights" if key == "lpips" and not run.lpips else ""
    digits = METRICS[key].digits
    return f"{found.mean:.{digits}f} [{found.low:.{digits}f}, {found.high:.{digits}f}]"


def difference_table(label: str, against: dict[str, dict[str, Estimate]]) -> Table:
    from rich.table import Table

    from ..evaluation.evaluate import METRICS

    keys = list(next(iter(against.values())))
    table = Table(f"{label} minus (paired)", box=None, pad_edge=False)
    for key in keys:
        table.add_column(METRICS[key].label, justify="right", no_wrap=True)
    for row, found in against.items():
        cells = []
        for key in keys:
            digits, one = METRICS[key].digits, found[key]
            cells.append(f"{one.mean:+.{digits}f} [{one.low:+.{digits}f}, {one.high:+.{digits}f}]")
        table.add_row(row, *cells)
    return table


def object_table(run: Run, score: Score) -> Table:
    from rich.table import Table

    from ..evaluation.evaluate import METRICS
    from .screen import printable

    keys = [key for key in columns(run, [score]) if key in score.metrics]
    table = Table(run.label(score.model), box=None, pad_edge=False)
    for key in keys:
        table.add_column(METRICS[key].label, justify="right", no_wrap=True)
    table.add_column("seconds", justify="right")
    for row in score.rows:
        cells = [f"{row.figures[key]:.{METRICS[key].digits}f}" for key in keys] if not row.failure else []
        table.add_row(printable(row.name), *cells, *([f"{row.seconds:.2f}"] if cells else [row.failure]))
    return table


def as_facts(
    run: Run, score: Score, skipped: dict[str, tuple[str, int]], against: dict[str, dict[str, Estimate]]
) -> dict[str, Any]:
    """A row as JSON."""
    from ..errors import gravest

    good = [row for row in score.rows if not row.failure]
    code = gravest([row.code for row in score.rows if row.failure] + [code for _, code in skipped.values()])
    facts: dict[str, Any] = {
        "protocol": run.protocol.name,
        "how": run.protocol.says,
        "model": run.label(score.model),
        "n": len(good),
        "seconds": round(score.seconds, 3),
        "metrics": {key: as_numbers(found) for key, found in score.metrics.items()},
        "objects": [
            {"name": row.name, "seconds": round(row.seconds, 3)}
            | ({"failure": row.failure, "code": row.code} if row.failure else rounded(row.figures))
            for row in score.rows
        ],
        "photo_elevation": run.plan.elevation_deg,
        "skipped": [{"name": name, "failure": why, "code": code} for name, (why, code) in skipped.items()],
        "status": "error" if code else "ok",
        "code": code,
    }
    if against:
        facts["minus"] = {row: {key: as_numbers(one) for key, one in found.items()} for row, found in against.items()}
    return facts


def as_numbers(found: Estimate) -> dict[str, Any]:
    return {"mean": round(found.mean, 6), "ci95": [round(found.low, 6), round(found.high, 6)]}


def rounded(figures: dict[str, float]) -> dict[str, float]:
    return {key: round(value, 6) for key, value in figures.items()}


def show_comparison(one: Path, other: Path) -> int:
    """Paired differences of two runs that were printed with --json."""
    from ..errors import UsageError
    from ..evaluation.evaluate import compare

    first, second = read_run(one), read_run(other)
    if first["protocol"] != second["protocol"]:
        raise UsageError(
            f"they were measured by {first['protocol']} and by {second['protocol']}",
            where="--compare",
            remedy="compare runs of one protocol",
        )
    found = compare(*({item.pop("name"): item for item in objects_of(run)} for run in (first, second)))
    found.pop("seconds", None)
    show_tables([difference_table(first["model"], {second["model"]: found})])
    names = [{item["name"] for item in objects_of(run)} for run in (first, second)]
    if screen.json:
        facts = {"protocol": first["protocol"], "model": first["model"], "minus": second["model"]}
        facts |= {"n": len(names[0] & names[1]), "metrics": {key: as_numbers(value) for key, value in found.items()}}
        screen.result("", facts | {"status": "ok", "code": 0})
    return 0


def objects_of(run: dict[str, Any]) -> list[dict[str, Any]]:
    """Copies of the objects that were answered."""
    return [dict(item) for item in run["objects"] if "failure" not in item]


def read_run(path: Path) -> dict[str, Any]:
    """The last object of a file of JSON lines."""
    import json

    from ..errors import MissingInputError, UsageError

    try:
        run = json.loads(path.read_text("utf-8").strip().splitlines()[-1])
        known = {"protocol", "model", "objects"} <= run.keys()
    except OSError as error:
        raise MissingInputError((error.strerror or "unreadable").lower(), where=str(path)) from error
    except (ValueError, IndexError, AttributeError):
        known = False
    if not known:
        raise UsageError("it is not what `zero123 eval --json` prints", where=str(path), remedy="check --compare")
    return dict(run)
