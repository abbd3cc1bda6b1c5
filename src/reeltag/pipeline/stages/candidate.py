"""The stages of a model that the recipe trains: train, average."""

from __future__ import annotations

from dataclasses import dataclass, field

from reeltag.artifact.quantization.quantize import Encoding
from reeltag.core.distributed.process_group import rank
from reeltag.core.storage import read_json, write_json
from reeltag.core.text import counted
from reeltag.pipeline.executor import Job, Stage
from reeltag.pipeline.stages.files import CHECKPOINT, MODEL, SCORES, load_manifest, split
from reeltag.pipeline.stages.member import MemberStages
from reeltag.pipeline.stages.training import Given, Selected, Training
from reeltag.recipe.schema import Recipe
from reeltag.training import checkpoint
from reeltag.training.loop import final_weights
from reeltag.training.schedule import TrainingSettings, averaging_phase


@dataclass(frozen=True)
class ModelStages(MemberStages):
    """The stages of a model, a candidate or a student.

    Attributes:
        source: where its architecture is from.
        targets: stages with the soft targets of a student.
        overrides: see `Training`.
    """

    source: Given | Selected
    targets: tuple[str, ...] = ()
    overrides: TrainingSettings = field(default_factory=TrainingSettings)

    def source_stages(self) -> list[Stage]:
        """Train, and average where the recipe says so."""
        stages = [self.training.stage()]
        if self.recipe.averaging is not None:
            parameters = {"averaging": self.recipe.averaging.model_dump()}
            inputs = (*self.training.inputs, self.training.stage_name)
            epochs = self.recipe.averaging.epochs
            hours, size = self.training.gpu_hours(epochs), self.training.bytes(tensors=4)
            shared, traffic = self.training.processes, self.training.traffic(epochs)
            stage = Stage(self.finished, self._do_average, inputs, parameters, "", hours, size, shared, traffic)
            stages.append(self.training.placed(stage))
        return stages

    @property
    def training(self) -> Training:
        """How it comes to its weights."""
        return Training(self.recipe, self.name, self.source, self.targets, self.overrides)

    @property
    def finished(self) -> str:
        """The stage that ends with the float model."""
        return f"{'average' if self.recipe.averaging else 'train'}.{self.name}"

    def sizes(self, encoding: Encoding) -> list[int]:
        """Bytes of the tensors in an encoding, of each architecture that it may have."""
        return self.training.sizes(encoding)

    def averaging_scores(self, job: Job) -> dict[str, float]:
        """Hold-out GAP `plain` and `averaged`."""
        found: dict[str, float] = read_json(job.inputs[self.finished] / SCORES)
        return found

    def _do_average(self, job: Job) -> None:
        """Train on while averaging; keep the averaged weights only where the hold-out says so."""
        assert self.recipe.averaging is not None
        own = self.source.resolve(job)
        manifest = load_manifest(job, "train")
        start = checkpoint.load(job.inputs[self.training.stage_name] / CHECKPOINT)
        videos = len(self.training.videos(manifest))
        phase = averaging_phase(self.training.settings(own), self.recipe.averaging, videos)
        state = self.training.run(job, phase, start=start, name="average")
        if rank() > 0:  # of several processes the first chooses and writes
            return
        choices = {"plain": start.model, "averaged": final_weights(state)}
        scores = {key: self.training.holdout_gap(own.config, manifest, weights) for key, weights in choices.items()}
        kept = max(scores, key=scores.__getitem__)
        held = counted(len(split(self.recipe, manifest)[1]), f"hold-out {self.schema.example}")
        found = f"plain {scores['plain']:.5f}, averaged {scores['averaged']:.5f}"
        job.progress.say(f"  GAP on all {held}: {found}; kept {kept}")
        write_json(job.folder / SCORES, scores)
        self.training.save(job.folder / MODEL, own.config, choices[kept])


def candidate(recipe: Recipe, name: str) -> ModelStages:
    """The stages of one of the recipe's models, trained with hard labels."""
    return ModelStages(recipe, name, Given(recipe.models[name]))
