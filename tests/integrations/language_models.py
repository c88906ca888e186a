"""Small models of Transformers with random weights, their batches, and the losses written out."""

import torch
import torch.nn.functional as F

VOCABULARY, LENGTH = 31, 9


def config_of(name, **options):
    import transformers as t

    common = {"vocab_size": VOCABULARY, **options}
    if name == "gpt2":  # input and output embeddings are one parameter
        sizes = {"n_positions": 16, "n_embd": 16, "n_layer": 2, "n_head": 2, "bos_token_id": 0, "eos_token_id": 0}
        return t.GPT2Config(**{"use_cache": False} | sizes | common)
    if name == "t5":
        sizes = {"d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 2, "num_heads": 2, "decoder_start_token_id": 0}
        return t.T5Config(**{"use_cache": False} | sizes | common)
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4}
    sizes["max_position_embeddings"] = 32
    if name == "llama":  # grouped queries
        heads = {"num_key_value_heads": 2, "tie_word_embeddings": True, "bos_token_id": 0, "eos_token_id": 0}
        return t.LlamaConfig(**{"use_cache": False} | sizes | heads | common)
    return t.BertConfig(**sizes | common)


def model_of(name, kind="", **options):
    import transformers as t

    classes = {"gpt2": "GPT2LMHeadModel", "llama": "LlamaForCausalLM", "t5": "T5ForConditionalGeneration"}
    torch.manual_seed(0)
    return getattr(t, classes.get(name, f"BertFor{kind}"))(config_of(name, **options))


def without_dropout(name):
    return {
        "gpt2": {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0},
        "bert": {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0},
    }[name]


def batch(rows=4, seed=1, padded=True):
    """Tokens, labels of which the first do not count, and padding in the last row."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(1, VOCABULARY, (rows, LENGTH), generator=generator)
    labels, mask = tokens.clone(), torch.ones_like(tokens)
    labels[:, :3] = -100
    if padded:
        mask[-1, 6:] = 0
        labels[-1, 6:] = -100
    return {"input_ids": tokens, "attention_mask": mask, "labels": labels}


def next_token_loss(model, given):
    """The mean over the labels that count, in the model's own dtype."""
    inputs = {name: value for name, value in given.items() if name != "labels"}
    logits = model(**inputs).logits[:, :-1].reshape(-1, VOCABULARY)
    return F.cross_entropy(logits, given["labels"][:, 1:].reshape(-1), ignore_index=-100)


class Rows(torch.utils.data.Dataset):
    """Examples as a data collator takes them."""

    def __init__(self, rows=12):
        self.all = batch(rows, padded=False)

    def __len__(self):
        return len(self.all["labels"])

    def __getitem__(self, index):
        return {name: value[index] for name, value in self.all.items()}
