"""Tag videos from a random subset of their frames, as the paper's authors did before they used all (section 4.2)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from reeltag.core.errors import UsageError
from reeltag.core.storage import content_hash
from reeltag.data.loader import Batch, select_frames
from reeltag.data.schema import Schema


@dataclass(frozen=True)
class FrameSubset:
    """Random draw of frames from each video, which depends on the seed and the video's id alone.

    Attributes:
        frames: number of frames that are drawn, uniformly with replacement.
        seed: any whole number.
    """

    frames: int
    seed: int

    def draw(self, video: str, length: int) -> npt.NDArray[np.int64]:
        """Return the indices of the frames drawn from a video [frames], in the video's order.

        Args:
            video: its id.
            length: number of its real frames.
        """
        rng = np.random.default_rng(int(content_hash([self.seed, video])[:15], 16))
        return np.sort((rng.random(self.frames) * length).astype(np.int64))

    def select(self, batch: Batch) -> Batch:
        """Replace the frames of each video by those drawn from it: [B, frames, D], without padding."""
        rows = [self.draw(video, length) for video, length in zip(batch.ids, batch.lengths.tolist(), strict=True)]
        return select_frames(batch, torch.from_numpy(np.stack(rows)))


def frame_subset(frames: int | None, seed: int | None, schema: Schema) -> FrameSubset | None:
    """Return the subset of frames to tag from; None if all frames are used.

    Args:
        frames: number of frames to draw from each video; None for all.
        seed: of the draw, by default 0.
        schema: of the model.

    Raises:
        UsageError: a seed without a number of frames, a number that is not from 1 to the most frames that a video
            can have, or a model of video-level features.
    """
    if frames is None:
        if seed is not None:
            raise UsageError(f"seed: {seed} draws nothing, because all frames are used; give frames too, or no seed")
        return None
    if schema.level == "video":
        raise UsageError(f"frames: {frames} cannot be drawn, the model reads one vector a video; leave frames out")
    if not 1 <= frames <= schema.example_frames:
        raise UsageError(
            f"frames: {frames} is not from 1 to {schema.example_frames}, the most frames of a {schema.example} that "
            "the model reads; change it, or leave it out to tag from all frames"
        )
    return FrameSubset(frames, 0 if seed is None else seed)
