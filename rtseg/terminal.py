"""What a person sees in the terminal: tables on stdout; progress, notices, summary on stderr."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from rtseg.doctor import Finding
from rtseg.messages import forget_stdout, tell
from rtseg.pipeline import Progress as RunProgress
from rtseg.timing import RunReport

if TYPE_CHECKING:
    from typing_extensions import Self

_PLAIN_EVERY_SECONDS = 5.0


class Bar:
    """A progress bar on a terminal, a plain line now and then elsewhere."""

    def __init__(self, title: str) -> None:
        self._title = title
        self._console = Console(stderr=True)
        self._live: Progress | None = None
        if self._console.is_terminal:
            self._live = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                TextColumn("{task.fields[count]}"),
                TimeElapsedColumn(),
                TimeRemainingColumn(),
                TextColumn("{task.fields[note]}"),
                console=self._console,
                transient=True,
                # What goes to a file or a pipe (`--jsonl - > FILE`) must not pass by here.
                redirect_stdout=sys.stdout is not None and sys.stdout.isatty(),
            )
            self._task = self._live.add_task(title, total=None, count="", note="")
        self._next_line = time.monotonic() + _PLAIN_EVERY_SECONDS

    def __enter__(self) -> Self:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._live is not None:
            self._live.stop()

    def update(self, done: int, total: int | None, note: str = "") -> None:
        """Shows how far it is; cheap enough to be called for every frame."""
        count = f"{done} of {total}" if total else str(done)
        if self._live is not None:
            self._live.update(self._task, completed=done, total=total, count=count, note=note)
        elif time.monotonic() >= self._next_line:
            self._next_line = time.monotonic() + _PLAIN_EVERY_SECONDS
            self.print(f"{self._title}: {count} {note}".rstrip())

    def print(self, line: str) -> None:
        """A line of its own, above the bar."""
        if self._live is not None:
            self._live.console.print(line, markup=False, highlight=False)
        else:
            tell(line)


class RunDisplay(Bar):
    """What `rtseg run` shows while it runs, and at the end."""

    def __init__(self) -> None:
        super().__init__("frames")

    def notice(self, line: str) -> None:
        """A line that the user should see once."""
        self.print(f"rtseg: {line}")

    def building(self, done: int, total: int | None, what: str) -> None:
        """How far an engine is that is built before the run; without steps, a notice."""
        if total is None:
            self.notice(what)
        else:
            self.update(done, total, what)

    def progress(self, moment: RunProgress) -> None:
        fps = "" if moment.fps is None else f"{moment.fps:.1f} FPS, "
        note = f"{fps}mask age {moment.mask_age_ms:.0f} ms"
        self.update(moment.frames_out, moment.frame_count, note)

    def summary(self, report: RunReport) -> None:
        """One line: what came out, how fast, how old."""
        parts = [f"{report.frames_out} frame{'' if report.frames_out == 1 else 's'}"]
        if report.fps is not None:
            parts.append(f"{report.fps:.1f} FPS")
        if report.engine_fps is not None:
            parts.append(f"engine alone {report.engine_fps:.1f} FPS")
        if report.mask_age_ms:
            age = report.mask_age_ms
            parts.append(f"mask age p50 {age['p50']:.0f} ms, p99 {age['p99']:.0f} ms")
        if report.miou is not None:
            parts.append(f"mIoU {100 * report.miou:.1f} %")
        if report.frames_dropped:
            parts.append(f"{report.frames_dropped} dropped")
        what = f"{report.model}, {report.engine} {report.precision}"
        tell(f"{', '.join(parts)} ({what})")


class _Tables(Console):
    def on_broken_pipe(self) -> None:
        """The reader went away (`rtseg models | head`): nothing is wrong here."""
        forget_stdout()
        sys.exit(0)


def _console() -> Console:
    """For tables on stdout; in a file or a pipe wide enough for all of them."""
    console = _Tables()
    if not console.is_terminal:
        console.width = max(console.width, 120)
    return console


def _whole(table: Table, *names: str) -> Table:
    """Columns whose words are never cut off: one has to type them."""
    for column in table.columns:
        if column.header in names:
            column.no_wrap, column.overflow = True, "ignore"
            column.min_width = max(len(str(cell)) for cell in [column.header, *column.cells])
    return table


def models_table(rows: Sequence[dict[str, Any]]) -> None:
    """The zoo, for people: what we ship and measured, then the networks and what others report."""
    console = _console()
    shipped = [row for row in rows if row["shipped"]]
    networks = [row for row in rows if not row["shipped"]]
    if shipped:
        table = _right(Table("shipped", *_SIZES, "our mIoU", "on", box=None), 1, 5)
        for row in shipped:
            measured = row["shipped"]
            score = measured.get("miou")
            data = f"{measured['data']} {measured['split']} {measured['size']}" if score else ""
            table.add_row(*_sizes(row), f"{100 * score:.1f} %" if score else "", data)
        console.print(_whole(table, "shipped"))
        sizes = dict.fromkeys("x".join(map(str, row["gmacs_size"])) for row in shipped)
        console.print(f"GMACs at {', '.join(sizes)}", highlight=False)
    if networks:
        if shipped:
            console.print()
        table = _right(Table("network", *_SIZES, "year", "authors report", box=None), 1, 5)
        for row in networks:
            table.add_row(*_sizes(row), str(row["year"]), _reported(row["reported"]))
        console.print(_whole(table, "network"))
        count = f"{len(networks)} network{'' if len(networks) == 1 else 's'}"
        console.print(
            f"{count}; GMACs at 1024x2048 with 19 classes. Train one: "
            '`network = "NAME"` in a recipe; authors\' weights: `rtseg import`.',
            highlight=False,
            markup=False,
        )


_SIZES = ("params", "GMACs", "stride")


def _sizes(row: dict[str, Any]) -> tuple[str, ...]:
    params, gmacs = row["params"], row["gmacs"]
    return (
        row["name"],
        f"{params / 1e6:.2f} M" if params else "",
        f"{gmacs:.1f}" if gmacs else "",
        str(row["output_stride"]),
    )


def _right(table: Table, first: int, last: int) -> Table:
    for column in table.columns[first:last]:
        column.justify = "right"
    return table


def _reported(results: Sequence[dict[str, Any]]) -> str:
    """The first result that the authors give: "78.8 % cityscapes val"."""
    if not results:
        return ""
    first = results[0]
    return f"{100 * first['miou']:.1f} % {first['data']} {first['split']}"


def evaluation_table(result: dict[str, Any]) -> None:
    """IoU and boundary F1 per class and the means, in percent."""
    boundary = result["boundary_f1_per_class"]
    table = Table("class", "IoU", *(["boundary F1"] if boundary else []), box=None)
    for column in table.columns[1:]:
        column.justify = "right"
    for name, value in result["iou"].items():
        table.add_row(name, _percent(value), *([_percent(boundary[name])] if boundary else []))
    console = _console()
    console.print(table)
    contours = ""
    if boundary:
        contours = (
            f"boundary F1 {_percent(result['boundary_f1'])} "
            f"(within {100 * result['boundary_tolerance']:g} % of the diagonal), "
        )
    console.print(
        f"mIoU {_percent(result['miou'])}, pixel accuracy {_percent(result['pixel_accuracy'])}, "
        f"mean accuracy {_percent(result['mean_accuracy'])}, {contours}"
        f"frequency-weighted IoU {_percent(result['fw_iou'])} "
        f"({result['frames']} frames of {result['data']} {result['split']}, {result['model']}, "
        f"{result['engine']} {result['precision']}{_augmentation(result['augmentation'])})",
        highlight=False,
        soft_wrap=True,
    )


def _augmentation(augmentation: dict[str, Any]) -> str:
    """ ", flip, scales 0.75 1 1.25": what was done beyond one look; empty for nothing."""
    said = ["", "flip"] if augmentation["flip"] else [""]
    if augmentation["scales"] != [1.0]:
        said.append("scales " + " ".join(f"{s:g}" for s in augmentation["scales"]))
    if augmentation["window"]:
        said.append("window {}x{}".format(*augmentation["window"]))
    return ", ".join(said)


def bench_table(record: dict[str, Any]) -> None:
    """FPS against mIoU, a row per configuration."""
    table = Table(
        "model", "engine", "prec.", "size", "FPS", "engine FPS", "bound", "mIoU", "agree",
        "mask age p50", "peak RSS", box=None, padding=(0, 1, 0, 0), pad_edge=False,
    )  # fmt: skip
    for row in record["rows"]:
        if row["error"]:
            continue
        height, width = row["size"]
        table.add_row(
            row["model"],
            row["engine"],
            row["precision"],
            f"{height}x{width}",
            f"{row['fps']:.1f}",
            f"{row['engine_fps']:.1f}",
            f"{row['bound_fps']:.1f}",
            _percent(row["miou"]),
            f"{100 * row['pixel_agreement']:.2f} %",
            f"{row['mask_age_ms']['p50']:.0f} ms",
            f"{row['peak_rss_mib']:.0f} MiB",
        )
    _console().print(_whole(table, "model", "engine", "prec.", "size", "agree"))
    print(f"{record['data']}, {record['machine']['cores']} cores")


def doctor_table(findings: Sequence[Finding]) -> None:
    """What there is, and the fix for what there is not."""
    table = Table("", "what", "found", box=None, show_header=False)
    for finding in findings:
        mark = "[green]ok[/green]" if finding.ok else "[yellow]--[/yellow]"
        table.add_row(mark, finding.what, escape(finding.found))
        if finding.fix:
            table.add_row("", "", f"→ {escape(finding.fix)}")
    _console().print(table)


def engines_table(rows: Sequence[dict[str, Any]]) -> None:
    """What `rtseg build` made: sizes, build times, parity; and what it left out."""
    table = Table(box=None, padding=(0, 1, 0, 0))
    table.add_column("plan", no_wrap=True, min_width=max(len(row["name"]) for row in rows))
    table.add_column("input", no_wrap=True)
    table.add_column("SM", justify="right", no_wrap=True)
    for heading, width in (("size", 7), ("build", 6), ("parity", 8)):  # a figure is never cut off
        table.add_column(heading, justify="right", no_wrap=True, min_width=width)
    for row in rows:
        manifest = row["manifest"]
        if row["plan"] and manifest is None:
            alike = f"{100 * row['parity']['pixel_agreement']:.2f} %"
            size = f"{row['bytes'] / 1e6:.1f} MB"
            table.add_row(row["name"], "any", "CPU", size, f"{row['seconds']:.1f} s", alike)
            continue
        if manifest is None:
            table.add_row(row["name"], "skipped" if row["skipped"] else "[yellow]failed[/yellow]")
            continue
        parity = manifest["parity"]
        table.add_row(
            row["name"],
            _range(manifest["shapes"]),
            _between(manifest["compute_capabilities"]),
            f"{manifest['plan_bytes'] / 1e6:.1f} MB",
            f"{manifest['build_seconds']:.1f} s",
            "—" if parity is None else f"{100 * parity['pixel_agreement']:.2f} %",
        )
    _console().print(table)
    reasons: dict[str, int] = {}
    for row in rows:
        reason = row["error"] or row["skipped"]
        if reason:
            reasons[reason] = reasons.get(reason, 0) + 1
    for reason, count in reasons.items():
        print(f"{count} not built: {reason}")


def inspection_lines(record: dict[str, Any], prefix: str = "") -> None:
    """What is known about a model file or a plan, a line per fact."""
    for key, value in record.items():
        if isinstance(value, dict) and value:
            inspection_lines(value, f"{prefix}{key}.")
        else:
            told = ", ".join(map(str, value)) if isinstance(value, list | tuple) else value
            print(f"{prefix}{key}: {'—' if told in (None, '') else told}")


def _between(capabilities: Sequence[str]) -> str:
    """ "75–121", or the only one."""
    ends = (capability.removeprefix("SM") for capability in (capabilities[0], capabilities[-1]))
    return "–".join(dict.fromkeys(ends))


def _range(shapes: dict[str, Any]) -> str:
    low, high = shapes["min"], shapes["max"]
    sizes = [f"{h}x{w}" if n == 1 else f"{n} x {h}x{w}" for n, _, h, w in (low, high)]
    return sizes[0] if low == high else "–".join(sizes)


def _percent(value: float | None) -> str:
    return "—" if value is None else f"{100 * value:.1f} %"
