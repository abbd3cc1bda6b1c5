"""Stages of a member that was trained elsewhere."""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property

from torch import Tensor

from reeltag.artifact.file import Artifact, load_artifact, save_artifact, tensor_bytes
from reeltag.artifact.quantization.quantize import quantized_bytes
from reeltag.artifact.quantization.sizes import Encoding, least_bytes
from reeltag.core.errors import ArtifactError, UsageError
from reeltag.core.storage import file_hash
from reeltag.core.text import megabytes
from reeltag.pipeline.executor import Job, Stage
from reeltag.pipeline.stages.files import MODEL
from reeltag.pipeline.stages.member import MemberStages

IMPORT_FORMAT = 1  # raise it when the same file is imported with other content


class ImportedModelStages(MemberStages):
    """Stages of a finished `.reeltag` file that the recipe imports."""

    @property
    def finished(self) -> str:
        """Name of the stage that writes the float model."""
        return f"import.{self.name}"

    def sizes(self, encoding: Encoding) -> list[int]:
        """Return the bytes of the tensors in an encoding; those that are quantized stay as they are in the file."""
        kept, others = self._parts
        return [kept + quantized_bytes(others, encoding)]

    def least_size(self, encoding: Encoding) -> int:
        """Return the fewest bytes that entropy coding can leave of them."""
        kept, others = self._parts
        return kept + least_bytes((value.shape for value in others.values()), encoding)

    @property
    def _parts(self) -> tuple[int, dict[str, Tensor]]:
        """Bytes of the tensors that are quantized, in the file, and the other tensors by name."""
        (member,) = self._imported.members
        others = {name: value for name, value in member.state.items() if isinstance(value, Tensor)}
        stored = tensor_bytes(self.recipe.imported[self.name])[member.name]
        return sum(size for name, size in stored.items() if name not in others), others

    def source_stages(self) -> list[Stage]:
        """Return the stage that imports the file; it depends on the file's content, not on its path."""
        path = self.recipe.imported[self.name]
        size = path.stat().st_size
        stage = Stage(
            name=self.finished,
            work=self._import,
            format=IMPORT_FORMAT,
            parameters={"file": file_hash(path)},
            note=f"{path}, {megabytes(size)}",
            bytes=size,
        )
        return [stage]

    @cached_property
    def _imported(self) -> Artifact:
        """Model in the file, checked against the recipe's data.

        Raises:
            ArtifactError: the file is missing or damaged.
            UsageError: the file has several members, or was made for other data.
        """
        path, key = self.recipe.imported[self.name], f"imported.{self.name}"
        try:
            artifact = load_artifact(path)
        except ArtifactError as error:
            raise ArtifactError(f"{key}: {error}") from error
        if len(artifact.members) != 1:
            names = ", ".join(member.name for member in artifact.members)
            raise UsageError(f"{key}: {path} is an ensemble of {names}; import its members one by one")
        ours, theirs = (schema.model_dump(exclude={"ids", "labels"}) for schema in (self.schema, artifact.schema))
        if other := [
            f"{name} {_short(theirs[name])} and not {_short(ours[name])}" for name in ours if theirs[name] != ours[name]
        ]:
            raise UsageError(
                f"{key}: {path} was made for other data than data.schema says: {', '.join(other)}; "
                "make it for this data (`import-tf` takes the recipe as its --schema), or change the schema"
            )
        return artifact

    def _import(self, job: Job) -> None:
        (member,) = self._imported.members
        member = replace(member, name=self.name, weight=1.0)
        save_artifact(job.folder / MODEL, replace(self._imported, schema=self.schema, members=(member,)))


def _short(value: object) -> str:
    """Format a value of a schema for people: features as `name width`."""
    if isinstance(value, tuple):
        return " + ".join(f"{feature['name']} {feature['width']}" for feature in value)
    return str(value)
