"""What tiny models share: tokenizers of single letters, small text encoders, a small VAE.

A tiny model is a pipeline of random weights, small enough for a CPU. It has its original's classes,
scheduler and inputs, so it loads and runs through the same code as a real checkpoint; its pictures
are noise.
"""

import atexit
import io
import shutil
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

WIDTH = 32  # channels of every text and picture embedding
SD_BETAS = {  # the noise schedule of Stable Diffusion
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "steps_offset": 1,
}
_CLIP_LETTERS = "<|startoftext|>", "<|endoftext|>"


def vae(**changes: Any) -> Any:
    """An autoencoder of 8 pixels a latent, 4 latent channels; with other settings, if given."""
    import diffusers

    return diffusers.AutoencoderKL(
        block_out_channels=(8, 8, 8, 8),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=1,
        norm_num_groups=4,
        latent_channels=4,
        sample_size=64,
        **changes,
    )


def clip_config() -> Any:
    """Of a CLIP text encoder with ``WIDTH`` channels, 77 tokens, for ``clip_tokenizer``."""
    import transformers

    size = len(_clip_vocabulary())
    return transformers.CLIPTextConfig(
        vocab_size=size,
        bos_token_id=size - 2,
        eos_token_id=size - 1,
        pad_token_id=size - 1,
        hidden_size=WIDTH,
        intermediate_size=64,
        projection_dim=WIDTH,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=77,
    )


def clip_tokenizer() -> Any:
    """CLIP's byte-level tokenizer before any merge: a token is a letter."""
    import transformers

    vocabulary = {token: index for index, token in enumerate(_clip_vocabulary())}
    return transformers.CLIPTokenizer(vocab=vocabulary, merges=[], model_max_length=77)


def _clip_vocabulary() -> list[str]:
    from tokenizers.pre_tokenizers import ByteLevel

    letters = sorted(ByteLevel.alphabet())
    return [*letters, *(f"{letter}</w>" for letter in letters), *_CLIP_LETTERS]


def t5_tokenizer() -> Any:
    """A unigram tokenizer whose pieces are the printable ASCII letters."""
    import transformers

    letters = [(chr(code), -3.0) for code in range(33, 127)]
    vocabulary = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0), *letters]
    return transformers.T5Tokenizer(vocab=vocabulary, extra_ids=0, model_max_length=512)


def gemma_tokenizer() -> Any:
    """Gemma's tokenizer before any merge: a token is a printable ASCII letter."""
    import transformers

    letters = map(chr, range(33, 127))
    vocabulary = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "\n", "▁", *letters]
    numbered = {token: index for index, token in enumerate(vocabulary)}
    return transformers.GemmaTokenizer(vocab=numbered, merges=[])


def chatglm_tokenizer() -> Any:
    """ChatGLM's tokenizer over the printable ASCII letters."""
    from diffusers.pipelines.kolors import ChatGLMTokenizer

    return ChatGLMTokenizer(str(_pieces()))


@cache
def _pieces() -> Path:
    """A sentencepiece model of single letters; the file stays as long as this process.

    ChatGLM's tokenizer reads a file, and copies it when it is saved.
    """
    from sentencepiece import SentencePieceTrainer

    letters, model = "".join(map(chr, range(33, 127))), io.BytesIO()
    SentencePieceTrainer.train(
        sentence_iterator=iter([" ".join(letters)]),
        model_writer=model,
        model_type="char",
        vocab_size=len(letters) + 4,
        normalization_rule_name="identity",
        hard_vocab_limit=False,
        minloglevel=2,
    )
    folder = Path(tempfile.mkdtemp(prefix="tgate-batch-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    file = folder / "tokenizer.model"
    file.write_bytes(model.getvalue())
    return file
