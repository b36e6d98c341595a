"""How many versions of a block torch's compiler keeps: as many as there are kinds of batches, and no more."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator

from musubi_core.events import Listener, Warned, ignore
from musubi_core.models.compile_options import CompileOptions

# The input of the first block has no gradient, that of the others has; twice, for modes of adapters.
PER_KIND = 4
LIMITS = ("cache_size_limit", "accumulated_cache_size_limit")  # of one function, and of all together
LOGGER = "torch._dynamo.convert_frame"


@contextlib.contextmanager
def compile_limits(options: CompileOptions, kinds: int, emit: Listener) -> Iterator[None]:
    """Inside, the compiler keeps enough versions for `kinds` sizes of batches; afterwards as many as before.

    Blocks of a size beyond `--compile_cache_size_limit` run uncompiled, and one line says so; torch itself
    would go on with half a page of log.
    """
    if not (options.compile or options.whole):
        yield
        return
    import torch._dynamo

    settings = torch._dynamo.config
    before = {name: getattr(settings, name) for name in LIMITS}
    wanted = PER_KIND * kinds
    for name in LIMITS:
        setattr(settings, name, max(before[name], wanted))
    if options.compile_cache_size_limit:
        settings.cache_size_limit = options.compile_cache_size_limit
    # In one piece or not at all: then going on uncompiled is a failure, which is told where it is caught.
    told = _Told(ignore if options.compile_fullgraph or options.dynamo_fullgraph else emit)
    logger = logging.getLogger(LOGGER)
    logger.addFilter(told)
    try:
        yield
    finally:
        logger.removeFilter(told)
        for name, value in before.items():
            setattr(settings, name, value)


class _Told(logging.Filter):
    """Turns torch's word on a limit that was reached into one line for the user."""

    def __init__(self, emit: Listener) -> None:
        super().__init__()
        self._emit = emit
        self._once = False

    def filter(self, record: logging.LogRecord) -> bool:
        if "torch._dynamo hit config" not in str(record.msg):
            return True
        if not self._once:
            self._once = True
            self._emit(
                Warned(
                    text="There are more sizes than the compiler may keep versions for, so some run "
                    "uncompiled, slower. Raise --compile_cache_size_limit, or set --compile_dynamic auto."
                )
            )
        return False
