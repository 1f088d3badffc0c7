# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm_mmc project
"""How sequences lie in a call of an audio encoder, and in its CUDA graphs.

They are windows of full length, or packed behind convolutions that take them side by
side, or cut into chunks. An encoder has one of these layouts before its stock class.
"""

import numpy as np
import torch

from vllm_mmc.encoder.audio_graphs import CU_SEQLENS, INDEX, AudioGraphEncoder, Buffer
from vllm_mmc.encoder.packed import (
    TOKENS_PER_SECOND,
    Ints,
    Lengths,
    after_convolutions,
    host_lengths,
    sum_items,
)


class WindowLayout(AudioGraphEncoder):
    """Lengths are tokens of each window, and all the same.

    Attributes:
        num_mel_bins: Of a frame.
        max_source_positions: The tokens of a window, of two frames each.
    """

    num_mel_bins: int
    max_source_positions: int
    graph_inputs = {"input_features": Buffer()}

    def embeddings(self, lengths: Lengths) -> list[int]:
        return host_lengths(lengths).tolist()

    def shares(self, lengths: Ints, sequences: Ints | None = None) -> Ints:
        return lengths

    @property
    def least_share(self) -> int:
        return self.max_source_positions

    def graph_tokens(self, budget: int) -> int:
        positions = self.max_source_positions
        return max(budget // positions, 1) * positions

    def graph_sizes(self, budget: int, items: int) -> dict[str, tuple[int, ...]]:
        positions = self.max_source_positions
        held = self.graph_tokens(budget) // positions
        return {"input_features": (held, self.num_mel_bins, 2 * positions)}

    @property
    def token_multiple(self) -> int:
        return self.max_source_positions

    def max_packed_tokens(self, embeddings: int) -> int:
        return embeddings // self.token_multiple * self.token_multiple


class PackedLayout(AudioGraphEncoder):
    """`packed_buffers`. Lengths are frames of each sequence.

    Attributes:
        num_mel_bins: Of a frame.
        max_source_positions: The most tokens of a sequence.
        tokens_per_share: How many tokens become an embedding.
        tokens_per_embedding: The same if a last token is left over: an upper bound.
    """

    num_mel_bins: int
    max_source_positions: int
    tokens_per_share = 2
    tokens_per_embedding = 3
    graph_inputs = {
        "frames": Buffer(dim=1),
        "gaps": Buffer(fill=-1, dtype=torch.int64),  # the last column is always one
        "tokens": INDEX,
        "positions": INDEX,
        "cu_seqlens": CU_SEQLENS,
        "rows": Buffer(fill=-1, dtype=torch.int64),
    }

    @property
    def graph_max_seqlen(self) -> int:
        return self.max_source_positions

    @property
    def least_share(self) -> int:
        return TOKENS_PER_SECOND // self.tokens_per_share

    def graph_tokens(self, budget: int) -> int:
        return budget * self.tokens_per_share

    def graph_sizes(self, budget: int, items: int) -> dict[str, tuple[int, ...]]:
        tokens = self.graph_tokens(budget)
        sequences = budget // self._largest_share + items
        # Of a sequence the convolutions see two frames more than twice its tokens, and
        # behind it up to two columns of zeros.
        columns = 2 * tokens + 4 * sequences
        return {
            "frames": (self.num_mel_bins, columns),
            "gaps": (2 * sequences,),
            "tokens": (tokens,),
            "positions": (tokens,),
            "cu_seqlens": (sequences + 2,),  # a single token comes twice
            "rows": (tokens,),
        }

    @property
    def _largest_share(self) -> int:
        return self.graph_max_seqlen // self.tokens_per_share

    def shares(self, frames: Ints, sequences: Ints | None = None) -> Ints:
        each = -(-after_convolutions(frames) // self.tokens_per_share)
        if sequences is None:
            return each
        # All sequences but the last are of full length, or count as if they were.
        full = (sequences - 1) * self._largest_share + 1
        return np.maximum(sum_items(each, sequences), full)

    def max_packed_tokens(self, embeddings: int) -> int:
        return embeddings * self.tokens_per_embedding


class ChunkLayout(AudioGraphEncoder):
    """Chunks of equal length, whose tokens attend within windows of some chunks.

    Lengths are frames of each clip. `least_share` is the tokens of a chunk.

    Attributes:
        num_mel_bins: Of a frame.
        n_window: Half the frames of a chunk.
        n_window_infer: The frames of a window.
    """

    num_mel_bins: int
    n_window: int
    n_window_infer: int
    graph_inputs = {"chunks": Buffer(), "tokens": INDEX, "cu_seqlens": CU_SEQLENS}

    def graph_tokens(self, budget: int) -> int:
        return max(budget, 2)

    def graph_sizes(self, budget: int, items: int) -> dict[str, tuple[int, ...]]:
        chunks = -(-budget // self.least_share)
        windows = -(-budget // self.graph_max_seqlen) + items
        return {
            "chunks": (chunks, self.num_mel_bins, self.n_window * 2),
            "tokens": (self.graph_tokens(budget),),
            "cu_seqlens": (windows + 2,),  # a single token comes twice
        }

    @property
    def graph_max_seqlen(self) -> int:
        return self.least_share * (self.n_window_infer // (self.n_window * 2))

    def shares(self, frames: Ints, sequences: Ints | None = None) -> Ints:
        """The embeddings of whole chunks."""
        return -(-frames // (self.n_window * 2)) * self.least_share
