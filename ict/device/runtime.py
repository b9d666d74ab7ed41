"""The choice between GPU, CPU and Ascend, and starting MindSpore there."""
from __future__ import annotations

import os
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from ict.device import parallel
from ict.device.gpu import PLUGIN, SAYS_MORE, Problem, gpu_libraries, this_machine
from ict.errors import UserError, require
from ict.log import log

_started: list[Any] = []


def ascend_problems(devices: Path = Path('/dev')) -> list[Problem]:
    """Why there is no Ascend here; empty when there is one."""
    problems = []
    if not any(devices.glob('davinci[0-9]*')):
        problems.append(Problem('no Ascend card (/dev/davinci0)', "install the card's driver"))
    if not any((folder / 'libge_runner.so').is_file() for folder in
               map(Path, os.environ.get('LD_LIBRARY_PATH', '').split(':'))):
        problems.append(Problem('no CANN toolkit (libge_runner.so)', 'install it and source its set_env.sh'))
    return problems


def choose(target: str | None, device_id: int = 0, distributed: bool = False) -> str:
    """The device to use: ``target``, else GPU where MindSpore can use one, else CPU with one line that says so.

    For after the checks of arguments and files and before anything is written: msrun runs every script once more as
    its scheduler, and in that process this never returns.

    Raises:
        UserError: that device can't be used here; says what is missing. Or started without msrun, or by it in vain.
    """
    require(device_id >= 0, f'--device_id {device_id}: must be at least 0')
    parallel.check_launch(distributed)
    if distributed:
        device_id = int(os.environ.get('DEVICE_ID', '0'))  # this rank's number on its machine
    if target == 'Ascend':
        problems = ascend_problems()
    else:
        problems = [] if target == 'CPU' else this_machine().problems(device_id)
    if problems and target is not None:
        raise UserError(f'--device_target {target}: {"; ".join(map(str, problems))}; {SAYS_MORE}')
    if problems and parallel.is_writer():  # the remedy, for who has a card
        log(f'running on the CPU: {problems[0] if this_machine().cards else problems[0].what}; {SAYS_MORE}')
    if parallel.is_scheduler():
        parallel.serve()
    return target or ('CPU' if problems else 'GPU')


def start(target: str | None, device_id: int, distributed: bool = False) -> None:
    """Import MindSpore, in graph mode on ``target`` (see ``choose``), and join the other ranks."""
    target = choose(target, device_id, distributed)
    if _started == [target, device_id, distributed]:  # MindSpore refuses a second time in a process
        return
    os.environ.setdefault('GLOG_v', '3')  # errors only
    with gpu_libraries(this_machine()) if target == 'GPU' and 'mindspore' not in sys.modules else nullcontext():
        import mindspore as ms
        try:
            # msrun's ranks agree on their cards among themselves; a CPU has no number
            ms.set_device(target, *([] if distributed or target == 'CPU' else [device_id]))
        except RuntimeError as error:
            lines = [line for line in str(error).splitlines() if PLUGIN in line] or [str(error)]
            raise UserError(f'--device_target {target}: MindSpore cannot use it: {lines[0]}') from error
    ms.set_context(mode=ms.GRAPH_MODE)
    if target == 'GPU':  # float32 means float32: MindSpore's convolutions would take TF32 where a card has it
        ms.device_context.gpu.op_precision.conv_allow_tf32(False)
        ms.device_context.gpu.op_precision.matmul_allow_tf32(False)
    if distributed:
        parallel.join()
        ms.set_auto_parallel_context(parallel_mode='data_parallel', gradients_mean=True, parameter_broadcast=True)
    _started[:] = [target, device_id, distributed]


def rows_at_once(batch_size: int) -> int:
    """Pictures in one forward pass of inference: ``batch_size`` on an accelerator, one on a CPU."""
    import mindspore as ms
    return 1 if ms.get_context('device_target') == 'CPU' else batch_size
