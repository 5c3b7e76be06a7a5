"""A text-to-image pipeline of a model that kilopix trained.

In: prompts. Out: PIL images, arrays or tensors. An image depends on its prompt, its seed and the settings
alone: not on the batch that it is made in. Arguments have the names, the order and the meaning that they
have in StableDiffusionPipeline; what this pipeline cannot do is refused by its name.
"""

import hashlib
import math
from numbers import Integral, Real

import torch
from diffusers import DiffusionPipeline, ImagePipelineOutput

OUTPUT_TYPES = ("pil", "np", "pt", "latent")


class KilopixPipeline(DiffusionPipeline):
    """Text encoder, diffusion transformer, scheduler and autoencoder; call it with prompts."""

    _callback_tensor_inputs = ("latents",)
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
        prompt: str | list[str] | None = None,
        height: int | None = None,
        width: int | None = None,
        num_inference_steps: int | None = None,
        timesteps=None,
        sigmas=None,
        guidance_scale: float | None = None,
        negative_prompt: str | list[str] | None = None,
        num_images_per_prompt: int | None = 1,
        eta: float = 0.0,
        generator: torch.Generator | list[torch.Generator] | None = None,
        latents: torch.Tensor | None = None,
        prompt_embeds=None,
        negative_prompt_embeds=None,
        ip_adapter_image=None,
        ip_adapter_image_embeds=None,
        output_type: str = "pil",
        return_dict: bool = True,
        cross_attention_kwargs=None,
        guidance_rescale: float = 0.0,
        clip_skip=None,
        callback_on_step_end=None,
        callback_on_step_end_tensor_inputs=("latents",),
        *,
        seed: int | None = None,
    ):
        """Make `num_images_per_prompt` images of each prompt, of the seeds `seed` (0), `seed` + 1, ...

        A list of negative prompts has one for each prompt. In place of seeds, `latents` are the starting
        noise; or `generator` draws it, of all images together, and a list of generators each its own
        image's. Guidance is off where `guidance_scale` is 1 or less. What is None is the model's own
        setting. `output_type` is `pil`, `np` (images x height x width x 3, in [0, 1]), `pt` (images x 3 x
        height x width, in [0, 1]) or `latent`. `callback_on_step_end(pipeline, step, time, tensors)` sees the
        latents of every step, may return others in a dict, and stops the call with
        `pipeline._interrupt = True`.
        """
        _refuse(timesteps=timesteps, sigmas=sigmas, prompt_embeds=prompt_embeds)
        _refuse(negative_prompt_embeds=negative_prompt_embeds, ip_adapter_image=ip_adapter_image)
        _refuse(ip_adapter_image_embeds=ip_adapter_image_embeds, clip_skip=clip_skip)
        _refuse(cross_attention_kwargs=cross_attention_kwargs or None)
        _refuse(eta=None if eta == 0 else eta)
        _refuse(guidance_rescale=None if guidance_rescale == 0 else guidance_rescale)
        if type(self.scheduler).__name__ != "KilopixScheduler":
            raise ValueError(
                f"scheduler: is {type(self.scheduler).__name__}; the model needs its own KilopixScheduler."
            )
        if not isinstance(output_type, str) or output_type not in OUTPUT_TYPES:
            raise ValueError(f"output_type: must be one of {', '.join(OUTPUT_TYPES)} (got {output_type!r}).")
        config, device = self.config, self._execution_device
        repeats = _whole("num_images_per_prompt", num_images_per_prompt, 1)
        steps = _whole("num_inference_steps", num_inference_steps, config.steps)
        self._guidance_scale = _scale(guidance_scale, config.guidance_scale)
        prompts, negatives = _texts(prompt, negative_prompt, config.negative_prompt)
        prompts = [text for text in prompts for _ in range(repeats)]
        negatives = [text for text in negatives for _ in range(repeats)]
        shape = (len(prompts), *self._latent_shape(height, width))
        noise = _noise(shape, seed, repeats, generator, latents)
        wanted = _wanted_tensors(callback_on_step_end, callback_on_step_end_tensor_inputs)

        texts, guided = self._encode(prompts, device), None
        with_text = self.transformer.encode_text(*texts)
        self.scheduler.set_timesteps(steps)
        self._num_timesteps, self._interrupt = steps, False
        x = noise.to(device, torch.float32) * self.scheduler.init_noise_sigma
        for i, t in enumerate(self.progress_bar(self.scheduler.timesteps)):
            if self._interrupt:
                break
            on = config.guidance_stop <= float(t) <= config.guidance_start
            if on and self.do_classifier_free_guidance:
                if guided is None:
                    both = self._joined(texts, self._encode(negatives, device))
                    guided = self.transformer.encode_text(*both)
                given, without = self._predict(torch.cat([x, x]), t, guided).chunk(2)
                answer = torch.lerp(without, given, self._guidance_scale)
            else:
                answer = self._predict(x, t, with_text)
            x = self.scheduler.step(answer, t, x, return_dict=False)[0]
            if callback_on_step_end is not None:
                changed = callback_on_step_end(self, i, t, {"latents": x} if wanted else {})
                if not isinstance(changed, dict | None):
                    raise ValueError(f"callback_on_step_end: must return a dict (got {changed!r}).")
                x = _checked_latents((changed or {}).get("latents", x), shape)
        images = x if output_type == "latent" else self._decode(x)
        if output_type in ("np", "pil"):
            images = images.permute(0, 2, 3, 1).cpu().float().numpy()
        if output_type == "pil":
            images = self.numpy_to_pil(images)
        self.maybe_free_model_hooks()
        return ImagePipelineOutput(images=images) if return_dict else (images,)

    @property
    def guidance_scale(self):
        """The scale of the present call."""
        return self._guidance_scale

    @property
    def do_classifier_free_guidance(self):
        """Whether guidance is on."""
        return self._guidance_scale > 1

    @property
    def num_timesteps(self):
        """The steps of the present call."""
        return self._num_timesteps

    @property
    def interrupt(self):
        """Whether a callback has stopped the present call."""
        return self._interrupt

    def _latent_shape(self, height, width):
        """Channels, height and width of the latents of an image."""
        config = self.config
        unit = config.downsampling * self.transformer.config.patch
        sides = []
        for name, value in (("height", height), ("width", width)):
            side = _whole(name, value, config.image_size)
            if side % unit:
                raise ValueError(f"{name}: must be a multiple of {unit} (got {side}).")
            sides.append(side // config.downsampling)
        return self.transformer.config.channels, *sides

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


def _refuse(**arguments):
    """Raise for arguments of StableDiffusionPipeline that this pipeline has no code for."""
    for name, value in arguments.items():
        if value is not None:
            raise ValueError(f"{name}: this pipeline cannot do that; leave it out.")


def _whole(name, value, own):
    """A whole number of at least 1, or what None stands for."""
    if value is None:
        return own
    if not isinstance(value, Integral) or isinstance(value, bool) or value < 1:
        raise ValueError(f"{name}: must be a whole number of at least 1 (got {value!r}).")
    return int(value)


def _scale(value, own):
    """A guidance scale, or what None stands for."""
    if value is None:
        return own
    if not isinstance(value, Real) or isinstance(value, bool) or not math.isfinite(value) or value < 0:
        raise ValueError(f"guidance_scale: must be one finite number of at least 0 (got {value!r}).")
    return float(value)


def _texts(prompt, negative, own):
    """The prompts, and a negative prompt for each of them."""
    prompts = [prompt] if isinstance(prompt, str) else prompt
    if not isinstance(prompts, list | tuple) or not all(isinstance(text, str) for text in prompts):
        raise ValueError(f"prompt: must be a text or a list of texts (got {prompt!r}).")
    if not prompts:
        raise ValueError("prompt: the list is empty; give at least one text.")
    negative = own if negative is None else negative
    if isinstance(negative, str):
        return prompts, [negative] * len(prompts)
    if not isinstance(negative, list | tuple) or not all(isinstance(text, str) for text in negative):
        raise ValueError(f"negative_prompt: must be a text or a list of texts (got {negative!r}).")
    if len(negative) != len(prompts):
        raise ValueError(f"negative_prompt: has {len(negative)} texts for {len(prompts)} prompts.")
    return prompts, negative


def _noise(shape, seed, repeats, generator, latents):
    """The starting noise, from what is given: latents, or a generator or a list of them, or a seed."""
    if seed is not None and (generator is not None or latents is not None):
        raise ValueError("seed: give either seed, or generator or latents.")
    one_each = isinstance(generator, list | tuple)
    generators = generator if one_each else [] if generator is None else [generator]
    if not all(isinstance(one, torch.Generator) for one in generators):
        raise ValueError(f"generator: must be a torch.Generator or a list of them (got {generator!r}).")
    if one_each and len(generators) != shape[0]:
        raise ValueError(f"generator: has {len(generators)} generators for {shape[0]} images.")
    if latents is not None:
        return _checked_latents(latents, shape)
    if one_each:
        return torch.stack([torch.randn(shape[1:], generator=g, device=g.device).cpu() for g in generators])
    if generator is not None:
        return torch.randn(shape, generator=generator, device=generator.device)
    first = 0 if seed is None else seed
    if not isinstance(first, Integral) or isinstance(first, bool):
        raise ValueError(f"seed: must be a whole number (got {seed!r}); for one each, a list of generators.")
    seeds = [int(first) + i % repeats for i in range(shape[0])]
    return torch.stack([torch.randn(shape[1:], generator=_seeded("noise", s)) for s in seeds])


def _checked_latents(latents, shape):
    """Latents that the network can take."""
    if not isinstance(latents, torch.Tensor) or not latents.is_floating_point():
        raise ValueError(
            f"latents: must be a tensor of floating-point numbers (got {type(latents).__name__})."
        )
    if tuple(latents.shape) != tuple(shape):
        raise ValueError(f"latents: must have the shape {tuple(shape)} (got {tuple(latents.shape)}).")
    return latents


def _wanted_tensors(callback, names):
    """The tensors that a callback asks for; diffusers' own callbacks name them themselves."""
    if callback is not None and not callable(callback):
        raise ValueError(f"callback_on_step_end: must be a function (got {callback!r}).")
    names = getattr(callback, "tensor_inputs", names)
    known = KilopixPipeline._callback_tensor_inputs
    if isinstance(names, str) or not set(names or ()) <= set(known):
        raise ValueError(f"callback_on_step_end_tensor_inputs: must be a list of {known} (got {names!r}).")
    return list(names or ())


def _seeded(purpose, seed):
    """A generator for one use of one seed, the same on every machine."""
    digest = hashlib.sha256(f"{purpose}\x1f{seed}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
