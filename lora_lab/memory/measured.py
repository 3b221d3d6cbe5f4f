"""The memory that a block of code took, by this process, by torch on a GPU, and by tensors alone."""

import threading

import psutil
import torch

from . import rehearsal


class measure:
    """Around a block, the peak of memory in it: `with measure(model) as used: ...`, then `used.peak_rss_bytes`.

    rss: the resident set of this process, read every few milliseconds, so a shorter spike may be missed. Freed
    memory may stay resident, and then hides what the block needs: compare in fresh processes.
    cuda: torch's allocations on the current GPU (`torch.cuda.max_memory_allocated`), None without one.
    tensors: with a `model`, its tensors' bytes above its parameters and gradients, what `plan` calls activations
    and logits. For a model on an NVIDIA GPU the growth of torch's allocations; elsewhere what torch's operations
    return, counted one by one, which slows the block by a few percent.
    """

    def __init__(self, model=None, seconds_between_reads: float = 0.005):
        self._model, self._seconds = model, seconds_between_reads
        self.peak_cuda_bytes: int | None = None
        self.peak_tensor_bytes: int | None = None
        self.cuda_before_bytes = 0
        self._ledger: rehearsal.Ledger | None = None

    def __enter__(self):
        self._process, self._done = psutil.Process(), threading.Event()
        self.rss_before_bytes = self.peak_rss_bytes = self._process.memory_info().rss
        if torch.cuda.is_available():
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
            self.cuda_before_bytes = torch.cuda.memory_allocated()
        if self._model is not None and next(self._model.parameters()).device.type != "cuda":  # GPU or not
            self._ledger = rehearsal.Ledger()
            self._ledger.add_model(self._model)
            self._ledger.__enter__()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        return self

    def _read(self):
        while not self._done.wait(self._seconds):
            self._note()

    def _note(self):
        self.peak_rss_bytes = max(self.peak_rss_bytes, self._process.memory_info().rss)

    def __exit__(self, *error):
        if self._ledger:
            self._ledger.__exit__(*error)
            self.peak_tensor_bytes = self._ledger.peak - self._ledger.resting
        self._done.set()
        self._reader.join()
        self._note()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
            self.peak_cuda_bytes = torch.cuda.max_memory_allocated()
            if not self._ledger:
                self.peak_tensor_bytes = self.peak_cuda_bytes - self.cuda_before_bytes
