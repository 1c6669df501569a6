"""Many processes train as one: each learns from its part of every minibatch, and all go on with the same weights. In reading order:

    communicator.py     ranks that send arrays to each other;  local.py: threads;  mpi.py: processes
    on_device.py        arrays of a GPU, given to them;  cuda_aware.py: whether MPI takes them as they are
    emulated.py         a slow wire between ranks that are threads
    layout.py           arrays in one flat buffer, cut into chunks
    exchange.py         what happens to a chunk: the seam;  allreduce.py, master_worker.py: two strategies
    compression.py      what is left out of a chunk is sent later;  codecs.py: the formats
    engine.py           many chunks at a time, beside the computation
    staging.py          from and to a device: the seam;  device_staging.py: on streams of its own
    alone.py            what any team answers to the training loop;  team.py: a step: gradients leave, weights come
    meeting.py          what else ranks tell each other in a step;  sums.py: of K-FAC's statistics
    spread.py           new weights, where not every rank makes them;  ahead.py: already while the backward pass needs the old
    arrivals.py         weights on their way
    state.py            all that a newcomer needs;  batch_norm.py: batch normalization over all ranks
    elastic.py          when a process dies;  members.py: who takes whose place
    ending.py, quiet.py how many processes end together, and speak with one voice
    launch_*.py         how they are started and ended;  selftest.py: what is between them
"""

from minidl.parallel import allreduce, local, master_worker, mpi  # noqa: F401   the strategies make themselves known
from minidl.parallel.alone import Alone, Facts
from minidl.parallel.communicator import Communicator, Request
from minidl.parallel.elastic import Elastic
from minidl.parallel.emulated import EmulatedWire
from minidl.parallel.ending import end_together
from minidl.parallel.exchange import Exchange, create, names, register
from minidl.parallel.layout import Chunk, Layout
from minidl.parallel.staging import EmulatedDevice, Staging
from minidl.parallel.team import Team

__all__ = ["Alone", "Chunk", "Communicator", "Elastic", "EmulatedDevice", "EmulatedWire", "Exchange", "Facts", "Layout", "Request",
           "Staging", "Team", "create", "end_together", "local", "mpi", "names", "register"]
