"""What a run costs: parameters, FLOPs, memory, traffic, time, energy and money by formula. No torch, no files."""
