"""Start the processes of a distributed run: torchrun, without its stack trace when one of them fails.

`python -m swinv2_mm.engine.processes [torchrun's options] SCRIPT [its options]`, as `tools/dist_train.sh` does. Each
process says itself what went wrong; torchrun would add some forty lines about its own inside.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
from collections.abc import Sequence

from torch.distributed import run
from torch.distributed.elastic.multiprocessing import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

from swinv2_mm.engine.console import find_hint
from swinv2_mm.engine.interrupts import EXIT_INTERRUPTED, EXIT_TERMINATED
from swinv2_mm.engine.launch import EXIT_CRASH, EXIT_SETUP


def start(arguments: Sequence[str]) -> int:
    """Run torchrun and return the exit code of the first process that failed, or 0."""
    logging.disable(logging.CRITICAL)  # torchrun's own, in this process only
    if hasattr(signal, 'SIGUSR1'):  # torchrun passes SIGTERM on and would die of this one
        signal.signal(signal.SIGUSR1, lambda *_: os.kill(os.getpid(), signal.SIGTERM))
    try:
        run.main(list(arguments))
    except ChildFailedError as failed:
        rank, failure = failed.get_first_failure()
        if failure.exitcode in (EXIT_SETUP, EXIT_INTERRUPTED, EXIT_TERMINATED):
            return failure.exitcode
        if failure.exitcode < 0:  # by a signal: it could not report
            print(
                f'Process {rank} was ended by signal {-failure.exitcode}; '
                'signal 9 usually means that the machine ran out of memory.',
                file=sys.stderr,
            )
        return EXIT_CRASH
    except SignalException as ended:
        return EXIT_TERMINATED if ended.sigval == signal.SIGTERM else EXIT_INTERRUPTED
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except Exception as error:  # torchrun could not start, or lost the other machines
        print(f'{type(error).__name__}: {" ".join(str(error).split())[:300]}', file=sys.stderr)
        if hint := find_hint(error):
            print(f'  hint: {hint}', file=sys.stderr)
        return EXIT_SETUP if 'EADDRINUSE' in str(error) else EXIT_CRASH
    return 0


if __name__ == '__main__':
    sys.exit(start(sys.argv[1:]))
