# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm_mmc project
"""vLLM's protocol `SupportsEncoderCudaGraph` for a model with an audio encoder."""

from collections.abc import Mapping
from dataclasses import asdict, replace
from functools import cached_property
from typing import Any

import torch
from vllm.config import VllmConfig
from vllm.model_executor.models.utils import scatter_output_slices
from vllm.v1.worker.encoder_cudagraph import EncoderCudaGraphManager
from vllm.v1.worker.encoder_cudagraph_defs import (
    EncoderCudaGraphCaptureInputs,
    EncoderCudaGraphConfig,
    EncoderCudaGraphPathConfig,
    EncoderCudaGraphReplayBuffers,
    EncoderItemSpec,
)

from vllm_mmc import metrics
from vllm_mmc.attention.vit_attn_wrappers import max_seqlen_tensor
from vllm_mmc.compilation.counters import counters
from vllm_mmc.encoder.audio_graphs import (
    MAX_SEQLEN,
    AudioInput,
    SupportsAudioGraphs,
)
from vllm_mmc.encoder.interfaces import encoder_budget
from vllm_mmc.encoder.packed import Ints

AUDIO, VISION = "audio", "vision"
"""vLLM's paths: the encoders of one model, captured apart."""
PREFIX = "audio."
"""Of the audio encoder's buffers: vLLM keeps those of all paths by name."""
NO_BUDGET = 2**30
"""Fits no budget: vLLM hands such an item to `encoder_eager_forward`."""


class AudioGraphs:
    """`SupportsEncoderCudaGraph` for the audio encoder of `model`.

    Its public names become attributes of the model. A graph gives what
    `embed_multimodal` gives, projector included.
    """

    supports_encoder_cudagraph = True

    def __init__(self, model: SupportsAudioGraphs, vllm_config: VllmConfig) -> None:
        self._model = model
        self._vllm_config = vllm_config

    @cached_property
    def _vision(self) -> Any:
        return self._model.vision_graphs()

    def _budgets(self) -> list[int]:
        """Those that vLLM will capture."""
        config = self._vllm_config
        dtype = config.model_config.dtype
        model: Any = self._model
        manager = EncoderCudaGraphManager(config, torch.device("cpu"), dtype, model)
        return [budget for budget in manager.path_token_budgets[AUDIO] if budget]

    def get_encoder_cudagraph_config(self) -> EncoderCudaGraphConfig:
        inputs = self._model.audio_encoder.graph_inputs
        config = EncoderCudaGraphConfig(
            modalities=["audio"],
            buffer_keys=[PREFIX + name for name in (*inputs, MAX_SEQLEN)],
            padding_logics={PREFIX + name: inputs[name] for name in inputs},
            out_hidden_size=self._vllm_config.model_config.get_inputs_embeds_size(),
            paths={AUDIO: EncoderCudaGraphPathConfig()},
        )
        if self._vision is not None:
            vision = self._vision.get_encoder_cudagraph_config()
            config.modalities += vision.modalities
            config.buffer_keys += vision.buffer_keys
            config.padding_logics |= vision.padding_logics
            config.max_frames_per_video = vision.max_frames_per_video
            both = EncoderCudaGraphPathConfig(allow_zero_tokens=True)
            config.paths = {AUDIO: both, VISION: both}
        return config

    def _sees(self, mm_kwargs: Mapping[str, Any]) -> bool:
        """Whether the vision encoder's graphs are asked."""
        return self._vision is not None and bool(
            mm_kwargs.keys() & {"pixel_values", "pixel_values_videos"}
        )

    def get_input_modality(self, mm_kwargs: dict[str, Any]) -> str:
        if self._sees(mm_kwargs):
            return self._vision.get_input_modality(mm_kwargs)
        return "audio"

    def get_max_frames_per_video(self) -> int:
        if self._vision is not None:
            return self._vision.get_max_frames_per_video()
        return 1

    def get_encoder_cudagraph_budget_range(
        self, vllm_config: VllmConfig
    ) -> tuple[int, int]:
        least = self._model.audio_encoder.least_share
        most = max(encoder_budget(vllm_config) or 0, least)
        if self._vision is not None:
            vision = self._vision.get_encoder_cudagraph_budget_range(vllm_config)
            return min(least, vision[0]), max(most, vision[1])
        return least, most

    def get_encoder_cudagraph_item_specs(
        self, mm_kwargs: dict[str, Any]
    ) -> list[EncoderItemSpec]:
        if self._sees(mm_kwargs):
            specs = self._vision.get_encoder_cudagraph_item_specs(mm_kwargs)
            return [
                replace(spec, path_output_tokens={VISION: spec.output_tokens})
                for spec in specs
            ]
        audio = self._model.audio_input(mm_kwargs)
        if audio is None:
            # For instance embeddings, which are returned as they came.
            lengths = [len(x) for x in self._model.embed_multimodal(**mm_kwargs)]
            shares = [NO_BUDGET] * len(lengths)
        else:
            lengths = self._model.audio_embeddings(audio).tolist()
            shares = self._shares(audio).tolist()
        pairs = zip(lengths, shares, strict=True)
        return [EncoderItemSpec(n, n, {AUDIO: share}) for n, share in pairs]

    def _shares(self, audio: AudioInput) -> Ints:
        return self._model.audio_encoder.shares(audio.lengths, audio.sequences)

    def select_encoder_cudagraph_items(
        self, mm_kwargs: dict[str, Any], indices: list[int]
    ) -> dict[str, Any]:
        if self._sees(mm_kwargs):
            return self._vision.select_encoder_cudagraph_items(mm_kwargs, indices)
        return self._model.select_audio(mm_kwargs, indices)

    def prepare_encoder_cudagraph_capture_inputs(
        self,
        token_budget: int,
        max_batch_size: int,
        max_frames_per_batch: int,
        device: torch.device,
        dtype: torch.dtype,
        path: str = AUDIO,
        axis_keys: tuple[Any, ...] | None = None,
    ) -> EncoderCudaGraphCaptureInputs:
        if path == VISION:
            return self._vision.prepare_encoder_cudagraph_capture_inputs(
                token_budget, max_batch_size, max_frames_per_batch, device, dtype
            )
        encoder = self._model.audio_encoder
        values = {
            PREFIX + name: torch.full(
                shape,
                encoder.graph_inputs[name].fill or 0,
                dtype=encoder.graph_inputs[name].dtype or dtype,
                device=device,
            )
            for name, shape in encoder.graph_sizes(token_budget, max_batch_size).items()
        }
        if (longest := encoder.graph_max_seqlen) is not None:
            # Kernels read it when they are captured, so no replay may exceed it.
            values[PREFIX + MAX_SEQLEN] = max_seqlen_tensor(longest)
        return EncoderCudaGraphCaptureInputs(values)

    def prepare_encoder_cudagraph_replay_buffers(
        self,
        mm_kwargs: dict[str, Any],
        max_batch_size: int,
        max_frames_per_batch: int,
        path: str = AUDIO,
    ) -> EncoderCudaGraphReplayBuffers:
        # A replay passes no Python: this is where it is seen.
        counters.replays += 1
        metrics.publish(asdict(counters))
        if path == VISION:
            return self._vision.prepare_encoder_cudagraph_replay_buffers(
                mm_kwargs, max_batch_size, max_frames_per_batch
            )
        encoder = self._model.audio_encoder
        audio = self._model.audio_input(mm_kwargs)
        assert audio is not None
        share = int(self._shares(audio).sum())
        encoder.encoder_shapes.log.record(encoder.graph_tokens(share))
        values = encoder.graph_buffers(audio.features, audio.lengths)
        values.pop(MAX_SEQLEN, None)
        return EncoderCudaGraphReplayBuffers({PREFIX + n: values[n] for n in values})

    def encoder_cudagraph_forward(
        self, inputs: dict[str, torch.Tensor], path: str = AUDIO
    ) -> torch.Tensor:
        if path == VISION:
            return self._vision.encoder_cudagraph_forward(inputs)
        return self._model.encode_audio(
            {name.removeprefix(PREFIX): x for name, x in inputs.items()}
        )

    def encoder_eager_forward(
        self, mm_kwargs: dict[str, Any], path: str = AUDIO
    ) -> torch.Tensor:
        if self._sees(mm_kwargs):
            return self._vision.encoder_eager_forward(mm_kwargs)
        return torch.cat(list(self._model.embed_multimodal(**mm_kwargs)))

    def postprocess_encoder_output(
        self,
        outputs: dict[str, torch.Tensor],
        indices: list[int],
        per_item_out_tokens: list[int],
        dest: Any,
        clone: bool = False,
        batch_mm_kwargs: dict[str, Any] | None = None,
    ) -> None:
        """Cut into items. Without an output no item has an embedding."""
        if outputs:
            (output,) = outputs.values()
        else:
            config = self._vllm_config.model_config
            output = torch.empty(
                (0, config.get_inputs_embeds_size()),
                dtype=config.dtype,
                device=next(self._model.parameters()).device,
            )
        scatter_output_slices(output, indices, per_item_out_tokens, dest, clone)
        self._model.finite_items(indices, dest)
