"""Results in the making: every new row goes to the file at once."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from swinv2_mm.benchmarks.plots import draw
from swinv2_mm.benchmarks.processes import Pool
from swinv2_mm.benchmarks.results import read_results, write_results
from swinv2_mm.benchmarks.tables import as_markdown

EXIT_OK = 0
EXIT_SETUP = 2
EXIT_INTERRUPTED = 130


@dataclass(frozen=True)
class Outputs:
    """Where results go; None leaves a form out.

    Attributes:
        json: All figures and samples.
        markdown: Tables.
        plot: A figure.
    """

    json: Path | None = None
    markdown: Path | None = None
    plot: Path | None = None

    @classmethod
    def of(cls, json: str | None, markdown: str | None, plot: str | None) -> Outputs:
        """From the command line.

        Raises:
            FileNotFoundError: The folder of one of the files does not exist.
        """
        paths = [Path(name) if name else None for name in (json, markdown, plot)]
        for path in paths:
            if path is not None and not path.parent.is_dir():
                raise FileNotFoundError(
                    f'cannot write {path}: the folder {path.parent} does not exist'
                )
        return cls(*paths)


class Report:
    """The results of a run.

    Args:
        header: What `results.make_header` returns.
        outputs: Where results go.
    """

    def __init__(self, header: Mapping[str, Any], outputs: Outputs) -> None:
        self.results: dict[str, Any] = {'header': dict(header), 'rows': []}
        self.outputs = outputs

    def add(self, rows: Sequence[Mapping[str, Any]], pool: Pool) -> None:
        """Adds rows, says what they say, and writes the file."""
        self.results['rows'] += rows
        self.results['header']['versions'].update(pool.versions)
        for row in rows:
            say(_described(row))
        if self.outputs.json is not None:
            write_results(self.outputs.json, self.results)

    def finish(self) -> None:
        """Prints the tables and writes the other forms."""
        render(self.results, self.outputs)


def say(text: str) -> None:
    """Prints what goes on, apart from the tables."""
    print(text, file=sys.stderr, flush=True)


def render(results: Mapping[str, Any], outputs: Outputs) -> None:
    """Prints the tables; writes them and the figure where asked."""
    if not results['rows']:
        say('nothing was measured')
        return
    text = as_markdown(results)
    print(text)
    if outputs.markdown is not None:
        outputs.markdown.write_text(text, encoding='utf-8')
    if outputs.plot is not None:
        draw(results, outputs.plot)


def run_tool(
    run: Callable[[Outputs], None],
    json: str | None,
    markdown: str | None,
    plot: str | None,
    from_json: str | None,
) -> int:
    """Runs a benchmark, or renders what one has written; returns the exit code of the tool.

    Args:
        run: Measures, and leaves nothing running when it is interrupted.
        json, markdown, plot: Files to write.
        from_json: File to render instead of measuring.
    """
    signal.signal(signal.SIGTERM, _stop)
    try:
        outputs = Outputs.of(json, markdown, plot)
        if from_json is not None:
            render(read_results(Path(from_json)), outputs)
        else:
            run(outputs)
    except (ValueError, FileNotFoundError) as error:
        say(str(error))
        return EXIT_SETUP
    except KeyboardInterrupt:
        say('interrupted; what was measured so far is in the results')
        return EXIT_INTERRUPTED
    return EXIT_OK


def _stop(number: int, frame: Any) -> NoReturn:
    """Ends as a signal asks, but by way of what ends the other processes and removes temporary files."""
    sys.exit(128 + number)


def _described(row: Mapping[str, Any]) -> str:
    where = f'{row["input"]} window {row["window"]} {row["mode"]} ({row["backend"]})'
    if row['ours_ms'] is None:
        return f'{where}: failed'
    text = f'{where}: {row["ours_ms"]:.1f} ms'
    if row['fastest_peer']:
        text += f', fastest peer {row["fastest_peer"]} {row["ratio_to_fastest"]:.2f} times that'
    return text
