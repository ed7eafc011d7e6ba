"""Makes a tiny Llama with random weights, and its tokenizer: `python make_model.py DIRECTORY`, offline.

Runs in the environment that install.py makes. The tokenizer maps each printable ASCII character to one
token, so every token of the random output is complete text and becomes a chunk of its own in a stream.
"""

import string
import sys
from pathlib import Path

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

SPECIAL = ("<unk>", "<s>", "</s>", "<pad>", "<|system|>", "<|user|>", "<|assistant|>", "<|end|>")
CHAT_TEMPLATE = (
    "{% for message in messages %}<|{{ message.role }}|>{{ message.content }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
MAX_LENGTH = 4096


def tokenizer() -> PreTrainedTokenizerFast:
    """One token per printable character."""
    characters = string.ascii_letters + string.digits + string.punctuation + " \n"
    vocabulary = {token: i for i, token in enumerate([*SPECIAL, *characters])}
    core = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), behavior="isolated")
    core.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        additional_special_tokens=list(SPECIAL[4:]),
        model_max_length=MAX_LENGTH,
        clean_up_tokenization_spaces=False,
        chat_template=CHAT_TEMPLATE,
    )


def make(directory: Path) -> None:
    """Writes weights (safetensors), configuration and tokenizer to `directory`."""
    words = tokenizer()
    special = {f"{name}_token_id": getattr(words, f"{name}_token_id") for name in ("bos", "eos", "pad")}
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(words),
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=MAX_LENGTH,
        tie_word_embeddings=False,
        **special,
    )
    model = LlamaForCausalLM(config).to(torch.bfloat16)
    model.generation_config = GenerationConfig(**special)
    model.save_pretrained(directory, safe_serialization=True)
    words.save_pretrained(directory)
    text = words.apply_chat_template(
        [{"role": "user", "content": "Hello, how are you?"}], tokenize=False, add_generation_prompt=True
    )
    if words.decode(words(text)["input_ids"]) != text:
        raise SystemExit("the tokenizer does not give back the text that it was given")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        raise SystemExit("usage: python make_model.py DIRECTORY")
    make(Path(sys.argv[1]))
