"""Optimizers and schedules for anybody's training loop."""
