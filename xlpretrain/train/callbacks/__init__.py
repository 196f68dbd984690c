"""The callbacks of a run: the built-in ones (for `eval`, `spike`, `stop` and so on), then those of `callbacks`."""

from __future__ import annotations

from collections.abc import Callable, MutableMapping, Sequence

from xlpretrain.config.run_stages import RunStages
from xlpretrain.config.sections import CallbackConfig
from xlpretrain.data.splits import DataSplits
from xlpretrain.engine.base import Engine
from xlpretrain.errors import ConfigError
from xlpretrain.evaluation.held_out import EvalTask
from xlpretrain.train.callbacks.base import Callback, CallbackContext
from xlpretrain.train.callbacks.best_checkpoint import BestCheckpoint
from xlpretrain.train.callbacks.corpus_losses import CorpusLosses
from xlpretrain.train.callbacks.damaged_samples import DamagedSamples
from xlpretrain.train.callbacks.evaluation import Evaluation
from xlpretrain.train.callbacks.loss_plot import LossPlot
from xlpretrain.train.callbacks.nonfinite import NonFinite
from xlpretrain.train.callbacks.performance.profile import Profile
from xlpretrain.train.callbacks.performance.stragglers import Stragglers
from xlpretrain.train.callbacks.prediction_share import PredictionShare
from xlpretrain.train.callbacks.probe import Probe, ProbeCallback
from xlpretrain.train.callbacks.spike_rollback import SpikeRollback


def build_callbacks(
    context: CallbackContext,
    *,
    data: DataSplits,
    engine: Engine,
    probe: Probe | None,
    damage: MutableMapping[int, list[str]],
    plot: Callable[[], None],
    fence: Callable[[], None],
    hosts: Sequence[str],
    show_straggler: Callable[[str], None],
) -> dict[str, Callback]:
    """All callbacks by name, in call order, which is the same on every rank.

    damage: see `Loader`. plot: draws the loss curve. fence: raises if this attempt no longer owns the run. hosts:
    of each rank. show_straggler: see `Stragglers`. Raises `XLPretrainError` if a callback cannot be built.
    """
    config = context.config
    found: dict[str, Callback] = {}
    if config.profile.first_step is not None:
        found["profile"] = Profile(context, engine.model, fence=fence)
    if context.corpora:
        found["corpus_losses"] = CorpusLosses(context)
    found |= _prediction_share(context)
    found["nonfinite"] = NonFinite(context)
    found["damaged_samples"] = DamagedSamples(context, damage)
    found["spike_rollback"] = SpikeRollback(context)
    if data.valid is not None:
        task, averaged = EvalTask.of_run(config, data.valid, data.tokenizer), config.optimizer.average is not None
        found["evaluation"] = Evaluation(context, task, averaged=engine.averaged if averaged else None)
    if probe is not None and config.eval.probe is not None:
        found["probe"] = ProbeCallback(context, probe, engine, every_steps=config.eval.probe.every_steps)
    found["best_checkpoint"] = BestCheckpoint(context)
    found["loss_plot"] = LossPlot(plot)
    for section in config.callbacks:
        if (callback := _build_own(section, context)) is not None:
            same = sum(name.partition("#")[0] == section.type for name in found)
            found[f"{section.type}#{same + 1}" if same else section.type] = callback
    if context.world_size > 1:  # the last, so that what the others do after a step is work of this rank
        found["stragglers"] = Stragglers(context, hosts, show=show_straggler)
    return found


def _prediction_share(context: CallbackContext) -> dict[str, Callback]:
    """The watch over the share of predictions: of all stages, and of the first part of a mix that has a range."""
    objectives = [config.objective for config in RunStages.of(context.config).configs]
    for part, views in enumerate(zip(*(list(each.by_part.values()) or [each] for each in objectives), strict=True)):
        if shares := [view.predicted_share for view in views if view.predicted_share is not None]:
            expected = min(least for least, _ in shares), max(most for _, most in shares)
            return {"prediction_share": PredictionShare(context, expected, term=views[0].terms[0], part=part)}
    return {}


def _build_own(section: CallbackConfig, context: CallbackContext) -> Callback | None:
    callback = section.build(context)
    if callback is not None and not isinstance(callback, Callback):
        raise ConfigError(
            f"callbacks: {section.type}: {type(section).__name__}.build must return a Callback or None,"
            f" got {callback!r}"
        )
    if callback is None:
        return None
    limit, watchdog = callback.section_timeout_s, context.config.watchdog
    if limit is not None and limit >= watchdog.collective_timeout_s:
        raise ConfigError(
            f"callbacks: {section.type}: its section may take {limit:g} s between two pauses, but the other ranks wait"
            f" only {watchdog.collective_timeout_s:g} s, 2 * (watchdog.timeout_s + watchdog.startup_s); raise these"
        )
    return callback
