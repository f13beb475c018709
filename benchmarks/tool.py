"""Code of `tools/analysis_tools/benchmark_*.py`: options, cases, measurement and output."""

from __future__ import annotations

import argparse
import shlex
import signal
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any, NoReturn

import torch

from benchmarks.cases import DTYPES, SIZES, Case, parse_size
from benchmarks.contestants import (
    BACKBONE_PEERS,
    MODEL_PEERS,
    RUNTIMES,
    Contestant,
    absent_peers,
    ours,
    peer,
    products,
    whole_model,
)
from benchmarks.plots import draw
from benchmarks.processes import Pool
from benchmarks.results import Results, add_factors, make_header, read_results, say, shape_of
from benchmarks.roofline import METHOD, count_flops
from benchmarks.rounds import Contest, Entry
from benchmarks.tables import as_markdown
from benchmarks.weights import write_weights
from swinv2_mm.ops.execution import check_backend

EXIT_SETUP = 2


def add_options(parser: argparse.ArgumentParser, batch: int) -> None:
    """Add the options of both benchmarks; `batch` is the default of `--batch`."""
    add = parser.add_argument
    add('--window', nargs='+', type=int, default=[8], help='windows (8)')
    add('--arch', choices=list(SIZES), default='tiny')
    add('--batch', type=int, default=batch, help=f'images per call ({batch})')
    add('--dtype', choices=DTYPES, default='fp32', help='bf16 and fp16 by autocast (fp32)')
    add('--device', choices=('cpu', 'cuda'), default='cpu')
    add('--rounds', type=int, default=11, help='interleaved rounds (11)')
    add('--threads', type=int, help="threads of each contestant (torch's default)")
    again = 'repeat shorter calls for this long in every round (0.3)'
    add('--min-time', type=float, default=0.3, metavar='S', help=again)
    add('--timeout', type=float, default=1800, metavar='S', help='give up on a call after (1800)')
    add('--json', type=Path, metavar='F', help='write all figures; rewritten after every case')
    add('--markdown', type=Path, metavar='F', help='write the tables')
    add('--plot', type=Path, metavar='F', help='draw time and memory (.png, .svg, .pdf)')
    earlier = 'measure nothing: tables and figure of an earlier run'
    add('--from-json', type=Path, metavar='F', help=earlier)


def compare_backbones(args: argparse.Namespace) -> None:
    """Measure backbones with the options of the command line."""
    asks_for_sweep = args.sweep_resolution or args.sweep_window
    inputs = args.input or ([] if asks_for_sweep else ['512x512'])
    cases = _cases(args, inputs, args.window, args.mode)
    sides = map(str, sorted(set(args.sweep_resolution)))
    windows = sorted(set(args.sweep_window))
    sweeps = {
        'resolution': _cases(args, sides, [args.sweep_at_window], ['eval']),
        'window': _cases(args, [args.sweep_at_input], windows, ['eval']),
    }
    backends = [ours(name) for name in dict.fromkeys(args.backends)]
    absent = absent_peers(dict.fromkeys([*args.peers, *args.sweep_peers]), BACKBONE_PEERS)
    compiled = (False, True) if args.compile_peers else (False,)
    names = [name for name in dict.fromkeys(args.peers) if name not in absent]
    pairs = [(name, compile_) for compile_ in compiled for name in names]
    peers = [peer(*pair) for pair in pairs if not (pair[1] and pair[0] in RUNTIMES)]
    beside = [peer(name) for name in dict.fromkeys(args.sweep_peers) if name not in absent]
    run = _Run(args, absent)
    with run.pool:
        for case in cases:
            for_runtimes = case.mode == 'eval' and case.device == 'cpu'
            able = [p for p in peers if for_runtimes or p.options['library'] not in RUNTIMES]
            run.measure([case], [*backends, *able])
        for kind, swept in sweeps.items():
            for backend, mode in product(backends, args.mode if swept else ()):
                of_mode = [replace(case, mode=mode) for case in swept]
                run.measure(of_mode, [backend, *beside], kind)
    run.finish()


def compare_models(args: argparse.Namespace) -> None:
    """Measure whole models with the options of the command line."""
    absent = absent_peers(dict.fromkeys(args.peers), MODEL_PEERS)
    names = [f'ours:{check_backend(name)}' for name in dict.fromkeys(args.backends)]
    names += [name for name in dict.fromkeys(args.peers) if name not in absent]
    run = _Run(args, absent)
    with run.pool:
        for task in args.task:
            for case in _cases(args, args.input, args.window, args.mode, task):
                run.measure([case], [whole_model(name, preprocesses=True) for name in names])
    run.finish()


class _Run:
    """A run of a benchmark; `absent`: peers that are not installed, and why."""

    def __init__(self, args: argparse.Namespace, absent: dict[str, str]) -> None:
        for name in ('rounds', 'batch', 'threads'):
            if getattr(args, name) is not None and getattr(args, name) < 1:
                raise ValueError(f'--{name} {getattr(args, name)}: expected at least 1')
        if args.device == 'cuda' and not torch.cuda.is_available():
            raise ValueError('--device cuda: torch sees no GPU; use --device cpu')
        for name, why in absent.items():
            say(f'{name} is absent: {why}')
        self.args = args
        threads = args.threads or torch.get_num_threads()
        settings = {key: getattr(args, key) for key in ('rounds', 'min_time', 'timeout')}
        settings |= {'flops': METHOD, 'absent': absent}
        tool, *options = sys.argv
        tool = tool if tool.startswith('swinv2-mm ') else shlex.join(['python', tool])
        command = f'{tool} {shlex.join(options)}'.rstrip()
        self.results = Results(make_header(command, settings, threads, args.device), args.json)
        self.pool = Pool(threads, args.device, args.timeout)
        weights = write_weights(args.arch, self.pool.folder / 'weights.pth')
        self.options = {'weights': str(weights), 'heads': str(self.pool.folder)}

    def measure(
        self, cases: Sequence[Case], contestants: Sequence[Contestant], sweep: str | None = None
    ) -> None:
        """Measure cases in the same rounds, and add a row for each case."""
        say(f'{", ".join(map(str, cases))}: {", ".join(c.name for c in contestants)}')
        entries = [Entry(contestant, case) for case in cases for contestant in contestants]
        is_backbone = cases[0].task == 'backbone'
        if is_backbone:  # once a round is enough
            entries += [Entry(product, cases[0]) for product in products('matmul', 'mm')]
        min_ms = 1000 * self.args.min_time
        contest = Contest(self.pool, entries, self.results, self.options, min_ms)
        contest.prepare()
        contest.measure(cases, self.args.rounds)
        has_parts = not is_backbone and cases[0].mode == 'eval'
        infos = contest.ask(entries[0], 'info') or {} if has_parts else {}
        self.pool.release()
        work = {case: {'gflops': count_flops(case) / 1e9} for case in cases if is_backbone}
        rows = [row | infos for case in cases if (row := contest.row(case, work.get(case)))]
        if sweep:
            add_factors(rows, sweep)
        self.results.content['header']['versions'].update(self.pool.versions)
        for row in rows:
            self.results.add(row)

    def finish(self) -> None:
        """Print the tables and write the other outputs."""
        self.results.finish()
        if self.results.content['rows']:
            _render(self.results.content, self.args)
        else:
            say('nothing was measured')


def _cases(
    args: argparse.Namespace, inputs: Any, windows: Any, modes: Any, task: str = 'backbone'
) -> list[Case]:
    """Return all combinations of the options."""
    for window in windows:
        if window < 1:
            raise ValueError(f'the window {window} is out of range: expected at least 1')
    common = {key: getattr(args, key) for key in ('arch', 'batch', 'dtype', 'device')}
    sizes = [parse_size(text) for text in inputs]
    return [Case(*each, task=task, **common) for each in product(sizes, windows, modes)]


def _render(results: dict[str, Any], args: argparse.Namespace) -> None:
    text = as_markdown(results)
    print(text)
    if args.markdown is not None:
        args.markdown.write_text(text, encoding='utf-8')
    if args.plot is not None:
        draw(results, args.plot)


def run_benchmark(run: Callable[[argparse.Namespace], None], args: argparse.Namespace) -> int:
    """Run a benchmark, or render its saved results; return the exit code of the tool."""

    def start() -> int:
        for path in (args.json, args.markdown, args.plot):
            if path is not None and not path.parent.is_dir():
                folder = path.parent
                raise FileNotFoundError(f'cannot write {path}: the folder {folder} does not exist')
        if args.from_json is None:
            run(args)
        else:
            results = read_results(args.from_json)
            with shape_of(args.from_json):
                _render(results, args)
        return 0

    return run_tool(start)


class Interrupted(KeyboardInterrupt):
    """The tool was interrupted by a signal."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number


def run_tool(run: Callable[[], int]) -> int:
    """Run a tool; return the exit code of `run`, 2 for invalid inputs, 130 or 143 if interrupted."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _interrupt)
    try:
        return run()
    except (ValueError, OSError) as error:
        say(str(error))
        return EXIT_SETUP
    except Interrupted as error:
        say('interrupted: what was measured so far is in the results')
        return 128 + error.number


def _interrupt(number: int, frame: Any) -> NoReturn:
    """Interrupt once, so that the cleanup of processes and temporary files is not interrupted."""
    for each in (signal.SIGINT, signal.SIGTERM):
        signal.signal(each, signal.SIG_IGN)
    raise Interrupted(number)
