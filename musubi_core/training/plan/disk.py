"""What a run will leave on the disk, by the options of saving."""

from __future__ import annotations

from collections.abc import Mapping

from musubi_core.training.options.saving import SavingOptions

LINE = 450  # bytes that a step takes in the metrics file, about


def disk_use(
    options: SavingOptions, *, lora: int, state: int, steps: int, steps_per_epoch: int
) -> Mapping[str, int]:
    """Bytes at the fullest moment by what they are for. lora, state: bytes of one save.

    Files are written beside the ones they replace, so there is room for one more of each.
    """
    by_step = _times(steps, options.save_every_n_steps)
    by_epoch = _times(steps, (options.save_every_n_epochs or 0) * steps_per_epoch)
    loras = _kept(by_step, options.save_last_n_steps) + _kept(by_epoch, options.save_last_n_epochs) + 1
    states = 1 if by_step or by_epoch else 0  # the newest is always there to restart from
    if options.save_state:
        states = _kept(by_step, options.save_last_n_steps_state or options.save_last_n_steps)
        states += _kept(by_epoch, options.save_last_n_epochs_state or options.save_last_n_epochs)
    states += bool(options.save_state or options.save_state_on_train_end)
    return {
        f"LoRA files ({loras})": loras * lora,
        f"run states ({states})": states * state,
        "while one is replaced": max(lora, state),
        "metrics": LINE * steps,
    }


def _times(steps: int, every: int | None) -> int:
    """Saves before the last step, which is saved in any case."""
    return (steps - 1) // every if every else 0


def _kept(saves: int, limit: int | None) -> int:
    """How many are there at once: a new one is written before the oldest goes."""
    return min(saves, limit + 1) if limit else saves
