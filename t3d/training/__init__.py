"""Training: samples, the loss of a step, the loop, and what a run keeps."""
