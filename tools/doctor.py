"""Report versions, devices, kernels and known problems of this installation."""

from __future__ import annotations

import json
import re
import sys
import textwrap
from typing import Any

from swinv2_mm_cli import HOME, load_file, make_parser, prepare_process


def main() -> int:
    """Run the tool and return its exit code."""
    parser = make_parser(__doc__, 'Exit code 0, or 2 if something is broken.')
    parser.add_argument('--json', action='store_true', help='print the report as JSON')
    args = parser.parse_args()
    prepare_process()
    # By its path: the package itself may be what cannot be imported.
    report = load_file(HOME / 'swinv2_mm' / 'apis' / 'doctor.py').examine()
    print(json.dumps(report, indent=1) if args.json else _text(report))
    return 2 if any(item['severity'] == 'error' for item in report['problems']) else 0


def _text(report: dict[str, Any]) -> str:
    """Return the report for a terminal."""
    cpu, mmcv = report['cpu'], report['mmcv']
    lines = [f'Python {report["python"]}, {report["system"]}']
    lines += [f'{cpu["name"]}, {cpu["cores"]} cores, {" ".join(cpu["instructions"])}', '']
    lines += _wrapped('Versions', ', '.join(report['versions'].values()))
    lines += ['', 'Devices and the kernels chosen']
    for name, entry in report['devices'].items():
        values = (f'{key} {value}' for key, value in entry.items() if value is not None)
        lines += _wrapped(f'  {name}', ', '.join(values))
    if mmcv:
        kind = 'compiled' if mmcv['compiled'] else 'not compiled: this package provides some'
        lines += ['', f"mmcv's operators ({kind})"]
        groups: dict[str, dict[str, None]] = {}
        for name, runs in (mmcv['supported'] | dict.fromkeys(mmcv['missing'], 'missing')).items():
            short = re.sub('_(forward|backward)(_.*)?$', '', name)
            groups.setdefault(runs, {})[short] = None
        for runs, names in groups.items():
            lines += _wrapped(f'  {runs}', ', '.join(names))
    lines += ['', 'Optional packages']
    for name, extra in report['extras'].items():
        lines.append(f'  {name:16}{extra["install"] or "installed"}')
    lines += ['', 'Problems' if report['problems'] else 'No problems found.']
    for item in report['problems']:
        lines += [f'  {item["severity"]}: {item["problem"]}', f'    remedy: {item["remedy"]}']
    return '\n'.join(lines)


def _wrapped(title: str, text: str) -> list[str]:
    """Return lines with a title."""
    return textwrap.wrap(f'{title}: {text}', 110, subsequent_indent='    ')


if __name__ == '__main__':
    sys.exit(main())
