"""The stage of a member that was trained elsewhere."""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property

from reeltag.artifact.file import Artifact, load_artifact, save_artifact
from reeltag.artifact.quantization.quantize import Encoding, quantized_bytes
from reeltag.core.errors import ArtifactError, UsageError
from reeltag.core.storage import file_hash
from reeltag.core.text import megabytes
from reeltag.pipeline.executor import Job, Stage
from reeltag.pipeline.stages.files import MODEL
from reeltag.pipeline.stages.member import MemberStages


class ImportedStages(MemberStages):
    """The stages of a finished `.reeltag` file that the recipe takes in."""

    @property
    def finished(self) -> str:
        """The stage that ends with the model as it came."""
        return f"import.{self.name}"

    def sizes(self, encoding: Encoding) -> list[int]:
        """Bytes of the tensors in an encoding."""
        (member,) = self._imported.members
        return [quantized_bytes(member.state, encoding)]

    def source_stages(self) -> list[Stage]:
        """One stage that takes the file in; it depends on the file's content, not on where it lies."""
        path = self.recipe.imported[self.name]
        size = path.stat().st_size
        note = f"{path}, {megabytes(size)}"
        return [Stage(self.finished, self._do_import, (), {"file": file_hash(path)}, note, bytes=size)]

    @cached_property
    def _imported(self) -> Artifact:
        """The file, found fit for the recipe's data.

        Raises:
            ArtifactError: missing or damaged.
            UsageError: it holds several members, or was made for other data.
        """
        path, key = self.recipe.imported[self.name], f"imported.{self.name}"
        try:
            found = load_artifact(path)
        except ArtifactError as error:
            raise ArtifactError(f"{key}: {error}") from error
        if len(found.members) != 1:
            names = ", ".join(member.name for member in found.members)
            raise UsageError(f"{key}: {path} is an ensemble of {names}; import its members one by one")
        ours, theirs = (schema.model_dump(exclude={"ids", "labels"}) for schema in (self.schema, found.schema))
        if other := [
            f"{name} {_short(theirs[name])} and not {_short(ours[name])}" for name in ours if theirs[name] != ours[name]
        ]:
            raise UsageError(
                f"{key}: {path} was made for other data than data.schema says: {', '.join(other)}; "
                "make it for this data (`import-tf` takes the recipe as its --schema), or change the schema"
            )
        return found

    def _do_import(self, job: Job) -> None:
        (member,) = self._imported.members
        member = replace(member, name=self.name, weight=1.0)
        save_artifact(job.folder / MODEL, replace(self._imported, schema=self.schema, members=(member,)))


def _short(value: object) -> str:
    """A schema's value for people: features as `name width`."""
    if isinstance(value, tuple):
        return " + ".join(f"{feature['name']} {feature['width']}" for feature in value)
    return str(value)
