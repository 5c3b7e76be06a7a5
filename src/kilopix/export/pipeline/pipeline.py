"""A text-to-image pipeline of a model that kilopix trained.

In: prompts. Out: PIL images. A picture depends on its prompt, its seed and the settings alone: not on the
batch that it is made in.
"""

import hashlib

import torch
from diffusers import DiffusionPipeline, ImagePipelineOutput


class KilopixPipeline(DiffusionPipeline):
    """Text encoder, diffusion transformer, scheduler and autoencoder; call it with prompts."""

    model_cpu_offload_seq = "text_encoder->transformer->vae"

    def __init__(
        self,
        transformer,
        vae,
        text_encoder,
        tokenizer,
        scheduler,
        image_size: int = 256,
        downsampling: int = 8,
        max_tokens: int = 128,
        steps: int = 25,
        guidance_scale: float = 4.0,
        guidance_start: float = 1.0,
        guidance_stop: float = 0.0,
        negative_prompt: str = "",
    ):
        super().__init__()
        self.register_modules(
            transformer=transformer,
            vae=vae,
            text_encoder=text_encoder,
            tokenizer=tokenizer,
            scheduler=scheduler,
        )
        self.register_to_config(
            image_size=image_size,
            downsampling=downsampling,
            max_tokens=max_tokens,
            steps=steps,
            guidance_scale=guidance_scale,
            guidance_start=guidance_start,
            guidance_stop=guidance_stop,
            negative_prompt=negative_prompt,
        )

    @torch.inference_mode()
    def __call__(
        self,
        prompt: str | list[str],
        negative_prompt: str | None = None,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        num_images_per_prompt: int = 1,
        seed: int = 0,
        generator: torch.Generator | None = None,
        latents: torch.Tensor | None = None,
        height: int | None = None,
        width: int | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        callback_on_step_end=None,
    ):
        """Make `num_images_per_prompt` pictures of each prompt, of the seeds `seed`, `seed` + 1, ...

        `latents` are the starting noise, if given; or `generator` draws it, of all pictures together. With
        `guidance_scale` 1 guidance is off. `output_type` is `pil`, `pt` (pixels in [0, 1]) or `latent`.
        `callback_on_step_end(pipeline, step, time, values)` sees the latents of every step.
        """
        config, device = self.config, self._execution_device
        prompts = [prompt] if isinstance(prompt, str) else list(prompt)
        prompts = [text for text in prompts for _ in range(num_images_per_prompt)]
        scale = config.guidance_scale if guidance_scale is None else guidance_scale
        negative = config.negative_prompt if negative_prompt is None else negative_prompt
        width, height = width or config.image_size, height or config.image_size
        unit = config.downsampling * self.transformer.config.patch
        if width % unit or height % unit:
            raise ValueError(f"width {width} and height {height} must be multiples of {unit}.")
        shape = (
            self.transformer.config.channels,
            height // config.downsampling,
            width // config.downsampling,
        )
        if latents is not None:
            noise = latents
        elif generator is not None:
            noise = torch.randn(len(prompts), *shape, generator=generator, device=generator.device)
        else:
            seeds = [seed + i % num_images_per_prompt for i in range(len(prompts))]
            noise = torch.stack([torch.randn(shape, generator=_seeded("noise", s)) for s in seeds])
        texts = self._encode(prompts, device)
        with_text = self.transformer.encode_text(*texts)
        guided = None
        if scale != 1.0:
            both = self._joined(texts, self._encode([negative] * len(prompts), device))
            guided = self.transformer.encode_text(*both)
        self.scheduler.set_timesteps(num_inference_steps or config.steps)
        x = noise.to(device, torch.float32) * self.scheduler.init_noise_sigma
        for i, t in enumerate(self.progress_bar(self.scheduler.timesteps)):
            if guided is not None and config.guidance_stop <= float(t) <= config.guidance_start:
                answer = self._predict(torch.cat([x, x]), t, guided)
                given, without = answer.chunk(2)
                answer = torch.lerp(without, given, scale)
            else:
                answer = self._predict(x, t, with_text)
            x = self.scheduler.step(answer, t, x, return_dict=False)[0]
            if callback_on_step_end is not None:
                values = callback_on_step_end(self, i, t, {"latents": x}) or {}
                x = values.get("latents", x)
        images = x if output_type == "latent" else self._decode(x)
        if output_type == "pil":
            images = self.numpy_to_pil(images.permute(0, 2, 3, 1).cpu().float().numpy())
        self.maybe_free_model_hooks()
        return ImagePipelineOutput(images=images) if return_dict else (images,)

    def _predict(self, x, t, context):
        times = torch.full((len(x),), float(t), device=x.device)
        return self.transformer(x.to(self.transformer.dtype), times, context).float()

    def _encode(self, texts, device):
        """States `B N D`, zero where padded, and a mask that is true where a token is real."""
        self.tokenizer.padding_side = "right"
        tokens = self.tokenizer(
            texts,
            padding=True,
            truncation=True,
            max_length=self.config.max_tokens,
            return_tensors="pt",
        ).to(device)
        ids, mask = tokens["input_ids"], tokens["attention_mask"]
        states = self.text_encoder(input_ids=ids, attention_mask=mask).last_hidden_state
        mask = mask.bool()
        states = states.masked_fill(~mask[..., None], 0.0)
        return states.to(self.transformer.dtype), mask

    @staticmethod
    def _joined(texts, others):
        """Two batches of texts as one, padded to one length."""
        length = max(texts[0].shape[1], others[0].shape[1])
        pad = torch.nn.functional.pad
        states = [pad(states, (0, 0, 0, length - states.shape[1])) for states, _ in (texts, others)]
        masks = [pad(mask, (0, length - mask.shape[1])) for _, mask in (texts, others)]
        return torch.cat(states), torch.cat(masks)

    def _decode(self, latents):
        """Pixels in [0, 1] of latents as the transformer knows them."""
        config = self.transformer.config
        mean, std = (
            torch.tensor(values, device=latents.device)[:, None, None]
            for values in (config.latent_mean, config.latent_std)
        )
        pixels = self.vae.decode((latents * std + mean).to(self.vae.dtype)).sample
        return ((pixels.clamp(-1, 1) + 1) / 2).float()


def _seeded(purpose, seed):
    """A generator for one use of one seed, the same on every machine."""
    digest = hashlib.sha256(f"{purpose}\x1f{seed}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
