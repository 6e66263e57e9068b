"""From text to batches of token ids: documents, tokenizers, token shards, the order of samples. Without torch."""
