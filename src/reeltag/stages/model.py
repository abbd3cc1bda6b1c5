"""The stages of a model that the recipe trains: train, average."""

from __future__ import annotations

from torch import Tensor

from reeltag import artifact, checkpoint
from reeltag.artifact import Artifact, Member, load_tagger
from reeltag.data.batches import sequential_batches
from reeltag.data.shards import Indices, Manifest, Shards
from reeltag.environment import default_device, versions
from reeltag.executors import Job, Stage
from reeltag.models.config import TaggerConfig
from reeltag.models.tagger import Tagger, build_tagger, meta_tagger
from reeltag.predict import BATCH_SIZE, evaluate, predict
from reeltag.quantize import quantized_bytes
from reeltag.stages.files import CHECKPOINT, MODEL, SCORES, load_manifest, split
from reeltag.stages.member import MemberStages
from reeltag.storage import content_hash, megabytes, write_json
from reeltag.train import NOT_DECISIVE, TrainingSettings, averaging_phase, final_weights, run_phase, training_phase


class ModelStages(MemberStages):
    """The stages of one of the recipe's models."""

    def source_stages(self) -> list[Stage]:
        """Train, and average where the recipe says so."""
        recipe = self.recipe
        training = self.training.model_dump(exclude=NOT_DECISIVE)
        parameters = {"config": self.config.model_dump(), "training": training, **self.split_parameters}
        note = f"{self.parameters:,} parameters, {megabytes(4 * self.parameters)} float"
        stages = [Stage(f"train.{self.name}", self._do_train, ("data.train",), parameters, note)]
        if recipe.averaging is not None:
            averaging = {"averaging": recipe.averaging.model_dump()}
            stages.append(Stage(self.finished, self._do_average, ("data.train", f"train.{self.name}"), averaging))
        return stages

    @property
    def config(self) -> TaggerConfig:
        """The architecture."""
        return self.recipe.models[self.name].config

    @property
    def training(self) -> TrainingSettings:
        """How it is trained."""
        return self.recipe.training_of(self.name)

    @property
    def finished(self) -> str:
        """The stage that ends with the float model."""
        return f"{'average' if self.recipe.averaging else 'train'}.{self.name}"

    @property
    def seed(self) -> int:
        """Each model has its own, so that equal configurations differ in initial weights and order."""
        return int(content_hash([self.recipe.seed, self.name])[:15], 16)

    @property
    def parameters(self) -> int:
        """Number of trained weights."""
        return sum(parameter.numel() for parameter in self._meta.parameters())

    @property
    def quantized_bytes(self) -> int:
        """Bytes of the tensors after quantisation."""
        return quantized_bytes(self._meta.state_dict())

    @property
    def _meta(self) -> Tagger:
        return meta_tagger(self.config, self.schema.widths, self.schema.classes)

    def _do_train(self, job: Job) -> None:
        manifest = load_manifest(job, "train")
        train, _ = split(self.recipe, manifest)
        tagger = build_tagger(self.config, self.schema.widths, self.schema.classes, self.seed)
        settings = self.training
        phase = training_phase(settings, len(train))
        path = job.folder / CHECKPOINT
        state = run_phase(
            tagger, Shards(manifest), train, phase, settings, seed=self.seed, path=path, progress=job.progress
        )
        self._save(job, final_weights(state))

    def _do_average(self, job: Job) -> None:
        """Train on while averaging; keep the averaged weights only where the hold-out says so."""
        assert self.recipe.averaging is not None
        manifest = load_manifest(job, "train")
        train, holdout = split(self.recipe, manifest)
        start = checkpoint.load(job.inputs[f"train.{self.name}"] / CHECKPOINT)
        tagger = build_tagger(self.config, self.schema.widths, self.schema.classes, self.seed)
        settings = self.training
        state = run_phase(
            tagger,
            Shards(manifest),
            train,
            averaging_phase(settings, self.recipe.averaging, len(train)),
            settings,
            seed=self.seed,
            path=job.folder / CHECKPOINT,
            start=start,
            progress=job.progress,
            name="average",
        )
        choices = {"plain": start.model, "averaged": final_weights(state)}
        scores = {key: self._holdout_gap(weights, manifest, holdout) for key, weights in choices.items()}
        kept = max(scores, key=scores.__getitem__)
        job.progress.say(f"  hold-out GAP: plain {scores['plain']:.5f}, averaged {scores['averaged']:.5f}; kept {kept}")
        write_json(job.folder / SCORES, {**scores, "kept": kept})
        self._save(job, choices[kept])

    def _holdout_gap(self, weights: dict[str, Tensor], manifest: Manifest, holdout: Indices) -> float:
        tagger = load_tagger(self.config, self.schema, weights, self.name).to(default_device())
        batches = sequential_batches(Shards(manifest), holdout, batch_size=BATCH_SIZE)
        return evaluate(predict(tagger, batches)).gap()

    def _save(self, job: Job, weights: dict[str, Tensor]) -> None:
        member = Member(self.name, self.config, 1.0, weights)
        provenance = {"recipe": self.recipe.name, "versions": versions()}
        artifact.save(job.folder / MODEL, Artifact(self.schema, None, (member,), provenance))
