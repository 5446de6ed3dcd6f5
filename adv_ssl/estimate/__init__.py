"""What a run will take before it is begun: FLOPs, memory, time, chip-hours (docs/scale.md)."""
