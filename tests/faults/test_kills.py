"""Every resumable job, killed, on a full disk, and not alone in its folder: the same result afterwards, or refused."""

import sys

import pytest
import torch

from tests.faults.jobs import JOBS
from tests.faults.kills import Kills, cases

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="processes are forked and disks mounted")
QUICK = 2  # cases of a job in the ordinary run


@pytest.fixture(scope="module")
def kills(tmp_path_factory):
    before = torch.get_num_threads()
    torch.set_num_threads(1)  # helper threads do not survive a fork
    yield Kills(tmp_path_factory.mktemp("kills"))
    torch.set_num_threads(before)


# The demo's training is tested in test_demo.py too, and takes longer than all the others.
ORDINARY = [pytest.param(job, marks=pytest.mark.slow if job == "demo train" else ()) for job in JOBS]


@pytest.mark.parametrize("job", ORDINARY)
def test_a_job_that_is_killed_goes_on_to_the_same_result(kills, job):
    wrong = [(str(case), *ended) for case in cases(QUICK, 1, [job]) if (ended := kills.outcome(case))[0] != "same"]
    assert not wrong


@pytest.mark.faults
@pytest.mark.parametrize("job", list(JOBS))
def test_nothing_is_lost_in_any_job_whatever_the_fault(kills, job):
    ends = [(str(case), *kills.outcome(case)) for case in cases(60, 0, [job])]
    wrong = [end for end in ends if end[1] not in ("same", "refused", "skipped")]
    assert not wrong


def test_a_second_process_in_the_folder_is_refused(kills):
    second = [case for case in cases(28, 2, ["embed"]) if case.kind == "second process"]
    assert [kills.outcome(case)[0] for case in second[:2]].count("refused") >= 1
