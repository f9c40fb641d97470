"""The causal video VAE of this pack as a VAE object of ComfyUI: core's own VAE nodes take it, and it streams in them.

B batch   T frames   L latent frames
"""

from __future__ import annotations

import comfy.model_management
import comfy.model_patcher
import comfy.sd
import comfy.utils
import folder_paths
import torch
from torch import Tensor, nn

from ..nets.streaming import decode_chunks, encode_chunks, latent_frames, pixel_frames
from ..nets.video_vae import CHANNELS, SPACE, TIME, VideoVAE, VideoVAEConfig

CHUNK = 2  # latent frames at a time in core's nodes
# Values at the peak for each pixel of a chunk and each channel of the first level, from the CPU allocator at 256 x 256:
# 10.1 and 10.0 for a chunk, 12.3 and 15.2 for a single picture, and less for a net of four levels.
ENCODE_VALUES, DECODE_VALUES = 13, 16
CONFIG_KEY = "config"


class ChunkedVAE(nn.Module):
    """The net behind the calls that ComfyUI's VAE object makes."""

    comfy_has_chunked_io = True  # core then hands over the clip on the CPU and the buffer for the result

    def __init__(self, net: VideoVAE):
        super().__init__()
        self.net = net

    def encode(self, video: Tensor, device: torch.device | None = None) -> Tensor:
        """video: [B, 3, T, H, W] in -1..1 -> [B, 16, L, H/8, W/8]    device: where the net is already"""
        return torch.cat(list(encode_chunks(self.net, video, CHUNK)), 2)

    def decode(self, latent: Tensor, output_buffer: Tensor | None = None) -> Tensor:
        """latent: [B, 16, L, h, w] -> [B, 3, T, 8h, 8w]    output_buffer: of that shape, on any device"""
        if output_buffer is None:
            return torch.cat(list(decode_chunks(self.net, latent, CHUNK)), 2)
        done = 0
        for frames in decode_chunks(self.net, latent, CHUNK):
            output_buffer[:, :, done : done + frames.shape[2]].copy_(frames)
            done += frames.shape[2]
        return output_buffer

    def decode_output_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """What a latent of this shape decodes to."""
        B, _, L, h, w = shape
        return B, 3, pixel_frames(L), SPACE * h, SPACE * w


class InterspatialVAE(comfy.sd.VAE):
    """ComfyUI's VAE object with our net in it."""

    def __init__(self, net: VideoVAE):
        # core infers a net from names of weights; a net without weights leaves all its settings at their defaults
        super().__init__(sd={"pixel_space_vae": torch.tensor(1.0)})
        self.downscale_ratio = (latent_frames, SPACE, SPACE)
        self.upscale_ratio = (pixel_frames, SPACE, SPACE)
        self.downscale_index_formula = self.upscale_index_formula = (TIME, SPACE, SPACE)
        self.latent_channels, self.latent_dim, self.output_channels = CHANNELS, 3, 3
        self.working_dtypes = [torch.bfloat16, torch.float16, torch.float32]
        width = net.config.widths[0] / net.config.patch**2
        self.memory_used_encode = lambda shape, dtype: self._memory(ENCODE_VALUES * width, shape, 1, dtype)
        self.memory_used_decode = lambda shape, dtype: self._memory(DECODE_VALUES * width, shape, SPACE, dtype)
        self.vae_dtype = comfy.model_management.vae_dtype(self.device, self.working_dtypes)
        self.first_stage_model = ChunkedVAE(net).train(False).requires_grad_(False).to(self.vae_dtype)
        comfy.model_management.archive_model_dtypes(self.first_stage_model)
        self.patcher = comfy.model_patcher.ModelPatcher(
            self.first_stage_model,
            load_device=self.device,
            offload_device=comfy.model_management.vae_offload_device(),
        )
        self.size = None
        self.model_size()

    @staticmethod
    def _memory(values: float, shape: tuple[int, ...], scale: int, dtype: torch.dtype) -> float:
        """Bytes for a chunk: of frames, rows and columns of `shape` times `scale`."""
        frames = CHUNK * TIME if shape[2] > 1 else 1
        area = scale**2 * shape[3] * shape[4]
        return values * frames * area * comfy.model_management.dtype_size(dtype)


def video_vae_files() -> list[str]:
    """Names of the files in models/vae, in the order of ComfyUI's lists."""
    return folder_paths.get_filename_list("vae")


def video_vae_path(name: str) -> str:
    """raises: FileNotFoundError"""
    return folder_paths.get_full_path_or_raise("vae", name)


def load_video_vae(name: str) -> InterspatialVAE:
    """A file of `video_vae_files`.

    raises: FileNotFoundError; ValueError for a file that is no VAE of this pack, or whose weights do not fit its config
    """
    state, metadata = comfy.utils.load_torch_file(video_vae_path(name), safe_load=True, return_metadata=True)
    config = (metadata or {}).get(CONFIG_KEY)
    if config is None or "decoder.0.conv.weight" not in state:
        raise ValueError(f"{name} is no video VAE of Interspatial: its metadata has no config of one. Load other VAEs "
                         "with Load VAE.")  # fmt: skip
    net = VideoVAE(VideoVAEConfig.from_json(config))
    try:
        net.load_state_dict(state)
    except RuntimeError as error:
        why = f"{name}: the weights do not fit the config in the file. Get the file anew. {error}"
        raise ValueError(why) from error
    return InterspatialVAE(net)
