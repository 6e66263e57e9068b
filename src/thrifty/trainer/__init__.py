"""Executes a Plan: launch, build, loop, checkpoints, meter. Importing this package does not import torch."""
