# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm_mmc project
"""Qwen2.5-Omni with compiled encoders: a native, packed one for audio, and
Qwen2.5-VL's for pictures and video.

Stock runs Hugging Face's audio encoder, which without flash-attn calls attention once
for every two seconds in every layer. Here each layer calls it once.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
import torch.nn as nn
from transformers.models.qwen2_5_omni.modeling_qwen2_5_omni import (
    Qwen2_5OmniAudioEncoder,
)
from vllm.config import VllmConfig
from vllm.model_executor.models.qwen2_5_omni_thinker import (
    Qwen2_5OmniThinkerForConditionalGeneration,
)
from vllm.model_executor.models.qwen2_5_vl import (
    Qwen2_5_VisionTransformer,
    Qwen2_5_VLForConditionalGeneration,
)
from vllm.model_executor.models.utils import WeightsMapper

from vllm_mmc.compat import symbols
from vllm_mmc.encoder.audio_graphs import AudioInput, SupportsPackedAudio
from vllm_mmc.encoder.interfaces import EncoderPlan
from vllm_mmc.encoder.packed import (
    Lengths,
    after_convolutions,
    host_lengths,
    item_and_offset,
    mean_pool,
    packed_buffers,
    starts,
    whole_groups,
)
from vllm_mmc.models import qwen2_5_vl, whisper
from vllm_mmc.models.whisper import PackedWhisperEncoder

# === Audio Encoder === #


class CompiledQwen2_5OmniAudioEncoder(PackedWhisperEncoder):
    """The encoder, also for serving stacks of your own.

    `forward(input_features, feature_lens)` takes log-mel features [num_mel_bins,
    frames], clip after clip, and the number of frames of each clip, best on the host.
    It returns [embeddings, output_dim], clip after clip; a clip has
    `embeddings(feature_lens)` of them.
    """

    hf_to_vllm_mapper = WeightsMapper(
        orig_to_new_prefix={"ln_post.": "layer_norm.", "audio_bos_eos_token.": None}
    )

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "") -> None:
        # The sinusoids are in no checkpoint, and their angles need more than 16 bits.
        super().__init__(vllm_config=vllm_config, prefix=prefix, init_in_fp32=True)
        config = vllm_config.model_config.hf_config
        self.n_window = config.n_window
        self.proj = nn.Linear(config.d_model, config.output_dim)

    def forward(
        self, input_features: torch.Tensor, feature_lens: Lengths
    ) -> torch.Tensor:
        return self.forward_graph(self.graph_buffers(input_features, feature_lens))

    def graph_buffers(
        self, input_features: torch.Tensor, feature_lens: Lengths
    ) -> dict[str, torch.Tensor]:
        """The inputs of `forward_graph`."""
        frames = host_lengths(feature_lens)
        chunk = self.n_window * 2
        clip, index = item_and_offset(-(-frames // chunk))  # of each chunk
        sizes = np.minimum(frames[clip] - index * chunk, chunk)
        return packed_buffers(
            input_features,
            self.conv1.weight,
            start=starts(frames)[clip] + index * chunk,
            frames=sizes,
            tokens=after_convolutions(sizes),
            rows=whole_groups(after_convolutions(frames), 2),
        )

    def forward_graph(self, values: Mapping[str, torch.Tensor]) -> torch.Tensor:
        x = mean_pool(self.encode(values), values["rows"], 2)
        return self.proj(self.layer_norm(x))

    @property
    def graph_max_seqlen(self) -> int:
        return after_convolutions(self.n_window * 2)

    def load_weights(self, weights: Iterable[tuple[str, torch.Tensor]]) -> set[str]:
        return super().load_weights(self.hf_to_vllm_mapper.apply(weights))


class _Vision:
    """Qwen2.5-VL's methods, for a model that has its encoder."""

    is_multimodal_pruning_enabled = False

    def __init__(self, model: Any) -> None:
        self.visual = model.visual
        self.model_config = model.vllm_config.model_config
        self.multimodal_config = model.multimodal_config

    def __getattr__(self, name: str) -> Any:
        return getattr(Qwen2_5_VLForConditionalGeneration, name).__get__(self)


class SupportsQwenOmniAudio(SupportsPackedAudio):
    """For models with the audio arguments of Qwen2.5-Omni, also Qwen3's."""

    audio_parts = {"input_audio_features": ("audio_feature_lengths", 1)}

    def audio_input(self, values: Any) -> AudioInput | None:
        features = values.get("input_audio_features", values.get("input_features"))
        if not isinstance(features, torch.Tensor) or features.dim() == 3:
            return None  # vLLM's Rust frontend makes a padded batch
        # vLLM keeps these lengths on the host.
        return AudioInput(features, host_lengths(values["audio_feature_lengths"]))


class CompiledQwen2_5OmniThinkerForConditionalGeneration(
    SupportsQwenOmniAudio, Qwen2_5OmniThinkerForConditionalGeneration
):
    encoder_plan = EncoderPlan(
        towers={Qwen2_5OmniAudioEncoder: CompiledQwen2_5OmniAudioEncoder},
        classes=whisper.CLASSES | qwen2_5_vl.CLASSES,
    )
    needs = (symbols.WHISPER_WEIGHTS,)

    def vision_graphs(self) -> Any:
        visual = getattr(self, "visual", None)
        return _Vision(self) if isinstance(visual, Qwen2_5_VisionTransformer) else None
