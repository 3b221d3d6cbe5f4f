"""Copies of a process that share its work: for models too small to use more than one core."""

import contextlib
import multiprocessing
import os
import sys
import warnings
from collections.abc import Callable, Iterator

from ..display import Progress


@contextlib.contextmanager
def copies(work: Callable, processes: int) -> Iterator[Callable]:
    """Have copies of this process do `work(bar)` during the block, `processes` of them with this one.

    Yields what ends the copies. They are forked, so there are none but on Linux, nor once CUDA is in use. Each process
    has its share of torch's threads, this one where it is alone as well: what is too small for two of them waits for
    sixteen.
    """
    torch = sys.modules.get("torch")
    threads = torch.get_num_threads() if torch else 1
    alone = sys.platform != "linux" or (torch and torch.cuda.is_initialized())
    copies = [multiprocessing.get_context("fork").Process(target=_in_silence, args=(work,), daemon=True)
              for _ in range(0 if alone else processes - 1)]

    def end():
        for copy in copies:
            copy.kill()
            copy.join()

    try:
        if torch:  # before the fork: a copy has none of OpenMP's other threads, and would wait for them
            torch.set_num_threads(max(1, threads // processes))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of forking a process with threads, such as a kernel
            for copy in copies:
                copy.start()
        yield end
    finally:
        end()
        if torch:
            torch.set_num_threads(threads)


def _in_silence(work: Callable) -> None:
    """What a copy does: errors are left to the first process, which trains the same run again and shows them."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    with open(os.devnull, "w") as nowhere:
        sys.stdout = sys.stderr = nowhere
        with contextlib.suppress(Exception, KeyboardInterrupt), Progress(None, 0) as bar:
            work(bar)
        os._exit(0)
