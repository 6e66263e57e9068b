"""What a run reaches: published laws of loss over model size and data. No torch, no files."""
