"""The console shows what is said, the log file has everything."""

import logging
import sys

import pytest

from swinv2_mm.engine.console import Console, ConsoleHandler


def test_prints_go_to_the_log_only(tmp_path, capsys):
    with Console() as console:
        print('loading annotations into memory...')  # before the log file is known
        console.say('the loss is falling')
        console.open_log(tmp_path / 'run.log')
        print('half a line', end='')
        print(' and the rest', file=sys.stdout)
        print('from stderr', file=sys.stderr)
        print('unfinished', end='')
    seen = capsys.readouterr()
    assert seen.out == 'the loss is falling\n'
    assert seen.err == ''
    log = (tmp_path / 'run.log').read_text()
    for text in (
        'stdout - loading annotations into memory...',
        'console - the loss is falling',
        'stdout - half a line and the rest',
        'stderr - from stderr',
        'stdout - unfinished',
    ):
        assert text in log


def test_streams_are_given_back(capsys):
    before = sys.stdout, sys.stderr
    with pytest.raises(RuntimeError), Console():
        assert sys.stdout is not before[0]
        raise RuntimeError
    assert (sys.stdout, sys.stderr) == before


def test_a_silent_process_still_reports_failures(tmp_path, capsys):
    with Console(speaks=False, name='rank 1') as console:
        console.open_log(tmp_path / 'run.log')
        console.say('not twice, please')
        console.warn('nor this')
        console.fail('the disk is full')
    seen = capsys.readouterr()
    assert seen.out == ''
    assert seen.err == '[rank 1] the disk is full\n'
    assert 'not twice, please' in (tmp_path / 'run.log').read_text()


def test_a_run_that_ends_early_has_a_log_too(capsys):
    with Console() as console:
        print('imported something noisy')
        path = console.ensure_log()
        assert console.ensure_log() == path
    assert 'imported something noisy' in path.read_text()
    path.unlink()


def test_redrawn_progress_bars_leave_their_last_state(tmp_path):
    with Console() as console:
        console.open_log(tmp_path / 'run.log')
        sys.stderr.write('\r10%\r50%\r100%\n')
    assert (tmp_path / 'run.log').read_text().endswith('stderr - 100%\n')


def test_library_warnings_show_once_shortened_and_without_known_noise(capsys):
    logger = logging.Logger('library')
    with Console() as console:
        logger.addHandler(ConsoleHandler(console))
        logger.info('An environment dump')
        logger.warning('The draw is False, nothing is drawn')
        logger.warning('something to know')
        logger.warning('something to know')
        logger.error('long ' * 1000)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == 'warning: something to know'
    assert len(lines) == 2
    assert lines[1].startswith('warning: long long')
    assert lines[1].endswith('(in full in the log file)')
    assert len(lines[1]) < 500


def test_a_logger_that_outlives_the_console_is_quiet(capsys):
    logger = logging.Logger('library')
    with Console() as console:
        logger.addHandler(ConsoleHandler(console))
    logger.error('too late')
    assert capsys.readouterr().out == ''
