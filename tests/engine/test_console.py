"""The log file has everything, the terminal what a user watches; prints stay prints."""

import sys
from types import SimpleNamespace

import pytest
from mmengine.hooks import LoggerHook
from mmengine.logging import MMLogger

from swinv2_mm.engine import console

pytestmark = pytest.mark.filterwarnings('ignore:.*has been created')


@pytest.fixture
def run_logger(tmp_path):
    """Return a function that creates the logger of a Runner."""

    def create():
        name = f'run_{tmp_path.name}'
        logger = MMLogger.get_instance(name, log_file=str(tmp_path / 'run.log'))
        console.continue_logging(logger)
        return logger

    return create


def test_early_records_are_shown_at_once_and_get_into_the_log_file(run_logger, tmp_path, capsys):
    console.start_logging(rank=0)
    console.say('the config is read')
    assert 'the config is read' in capsys.readouterr().out
    MMLogger.get_current_instance().info('from a library')
    logger = run_logger()
    console.say('the loss is falling')
    logger.info('System environment')
    out = capsys.readouterr().out
    assert 'the loss is falling' in out
    assert 'from a library' not in out and 'System environment' not in out
    log = (tmp_path / 'run.log').read_text()
    places = [log.index(text) for text in ('the config', 'from a library', 'falling', 'System')]
    assert places == sorted(places)


def test_what_mmengines_hooks_log_is_shown(run_logger, capsys):
    runner = SimpleNamespace(logger=run_logger(), timestamp='now', work_dir='wd')
    LoggerHook(out_dir='somewhere').before_run(runner)
    assert 'Text logs will be saved to' in capsys.readouterr().out


def test_warnings_are_shown_except_the_known_harmless_ones(run_logger, tmp_path, capsys):
    logger = run_logger()
    logger.warning('something to know')
    logger.warning('"FileClient" will be deprecated in future')
    seen = capsys.readouterr().out
    assert 'something to know' in seen and 'FileClient' not in seen
    assert 'FileClient' in (tmp_path / 'run.log').read_text()


def test_prints_and_their_streams_are_left_alone(run_logger, capfdbinary):
    console.start_logging(rank=0)
    run_logger()
    print('a user looks at a tensor', flush=True)
    sys.stdout.buffer.write(b'raw bytes\n')
    sys.stdout.buffer.flush()
    print('to the error stream', file=sys.stderr, flush=True)
    seen = capfdbinary.readouterr()
    assert b'a user looks at a tensor\nraw bytes\n' in seen.out
    assert b'to the error stream\n' in seen.err


def test_other_processes_only_report_failures(tmp_path, capsys):
    console.start_logging(rank=1)
    console.say('said by the first process')
    console.warn('this, too')
    console.fail('the disk is full', rank=1)
    seen = capsys.readouterr()
    assert seen.out == ''
    assert seen.err == '[rank 1] the disk is full\n'


def test_failures_are_in_the_log_file(run_logger, tmp_path, capsys):
    logger = run_logger()
    assert console.log_file() == console.log_file(logger) == str(tmp_path / 'run.log')
    console.fail('the disk is full', rank=0)
    seen = capsys.readouterr()
    assert seen.err == 'the disk is full\n' and seen.out == ''
    assert 'the disk is full' in (tmp_path / 'run.log').read_text()


def test_a_log_file_that_cannot_be_written_does_not_stop_the_run(tmp_path, capsys):
    name = f'run_{tmp_path.name}'
    logger = MMLogger.get_instance(name, log_file='/dev/full')
    console.continue_logging(logger)
    logger.info('first')
    logger.warning('second')
    seen = capsys.readouterr()
    assert 'the log file /dev/full cannot be written (No space left on device)' in seen.out
    assert 'second' in seen.out
    assert 'Traceback' not in seen.out + seen.err
    assert console.log_file(logger) is None
